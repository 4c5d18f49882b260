"""How a language model is loaded: decided in `choice`, for all commands, and never by its own code.

- the embedded world: as it comes with the package;
- a model that TransformerLens lists: as TransformerLens loads it, a HookedTransformer;
- any other, in a folder or on the Hub, of an architecture that TransformerLens converts: its
  conversion to a HookedTransformer, compared with the model that transformers loads;
- any other that TransformerLens has an adapter for, or by name: a TransformerBridge;
- by name: SAELens' proxy of transformers' own model, an AutoModelForCausalLM.

The last has its modules' names as hooks (`model.layers.6`), all others those of TransformerLens
(`blocks.6.hook_resid_post`). What a model looks like, its hooks included, is read from its config,
before its numbers are. Code that its repository brings is never run: `trust_remote_code` is false
wherever transformers has a say.

SAEs can be attached to a HookedTransformer and to a TransformerBridge, since the classes are
SAELens' HookedSAETransformer and SAETransformerBridge.
"""
