"""TransformerLens' hooks around transformers' own model, to which SAEs can be attached."""

from __future__ import annotations

from sae_lens import SAETransformerBridge
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge


class SAEBridge(SAETransformerBridge):
    """SAELens' bridge, whose hooks have all their names, also after an SAE was attached.

    SAELens' own has none of the names that a HookedTransformer knows, such as `hook_resid_post`, so
    nothing could be read or trained there; and where an SAE was removed, hooks are never called.
    """

    @property
    def hook_dict(self) -> dict[str, HookPoint]:
        """Every hook by each of its names, those inside attached SAEs included."""
        own = super().hook_dict
        for name, hook in own.items():
            if hook.name not in own:  # the one that takes a removed SAE's place
                hook.name = name
        older = TransformerBridge.hook_dict.__get__(self).items()
        # the place of an attached SAE is no hook
        return {**{name: hook for name, hook in older if isinstance(hook, HookPoint)}, **own}
