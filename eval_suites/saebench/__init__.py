"""Every seam of SAEBench 0.6 that the suites rely on, in one place.

SAEBench's own entry points run, each with one SAE, and what they compute and write is theirs. While
they run, some names in their modules are replaced (and put back): to hand them the model and the
data that we have, to keep them from computing again what no SAE changes, and from writing where
they should not. Only this folder does so: `isolation.py` around every run, `core.py`, `probing.py`,
`absorption.py`, `sae_probes.py`, `autointerp.py`, `ravel.py` and `unlearning.py` for their
evaluations, `dictionary_learning.py` for SAEs of others.
`tests/eval_suites/saebench/test_seams.py` has a test per seam that fails when SAEBench moves it:

- `core.main.multiple_evals`, `scr_and_tpp.main.run_eval`, `sparse_probing.main.run_eval`,
  `sparse_probing_sae_probes.main.run_eval`, `autointerp.main.run_eval`,
  `ravel.main.run_eval`, `unlearning.main.run_eval` and `absorption.main.run_eval` evaluate
  `[(name, sae)]` and write one JSON file into the folder that they are given; what they return
  (core a list, the others a dict) holds the same numbers.
- each of these modules gets its model by `HookedTransformer.from_pretrained_no_processing`, but for
  that of RAVEL; that of sae-probes in `sae_probes.generate_model_activations`.
- `core.main` gets its text by `ActivationsStore.from_sae`, retries failures through
  `general_utils.retry_with_exponential_backoff`, and tells of an error only by `logger.error`,
  inside its `except` block; `run_evals` calls `get_sparsity_and_variance_metrics` for the batches
  that are encoded and decoded by `sae.encode` and `sae.decode`, one call each a batch.
- `dataset_utils.load_dataset` and `dataset_creation.load_dataset` are all that reads labelled data.
- `sparse_probing.main.get_dataset_activations` and `scr_and_tpp.main.get_dataset_activations` give
  all activations of a dataset, by class, and depend on no SAE.
- what `activation_collection.create_meaned_model_activations` returns is the language model's, and
  `probe_training.train_probe_on_activations` of these draws from torch's random state alone.
- `probe_training.train_sklearn_probe` is beartype's wrapper around a function that works, which
  refuses jaxtyping's annotations (`__wrapped__`).
- `scr_and_tpp.main.perform_feature_ablations` selects by `select_top_n_features`, and calls
  `ablated_precomputed_activations(acts, sae, mask, batch_size)`, which calls `sae.encode` once,
  then `sae.decode` of all codes, then of those that are left, for each part of the batch.
- `scr_and_tpp.main` asks `get_probe_test_accuracy` for accuracies before ablations and after each.
- `scr_and_tpp.main.COLUMN2_VALS_LOOKUP` has the datasets of TPP, whose classes are those of
  `dataset_info.chosen_classes_per_dataset`.
- `absorption.common.get_alpha_tokens` and `absorption.feature_absorption.get_alpha_tokens` list the
  vocabulary, in no fixed order.
- `absorption.common.train_and_save_probes` trains the first-letter probes; the functions
  `load_or_train_probe`, `load_probe_data_split_or_train` (of `absorption.k_sparse_probing`) and
  `load_probe` (of `absorption.feature_absorption`) are all that reads them.
- `absorption.k_sparse_probing._get_sae_acts` encodes again for every probe of some features, and
  `metrics` there is `sklearn.metrics`, asked for F1, recall and precision of the same two arrays.
- `absorption.main` writes through `run_k_sparse_probing_experiment` and
  `run_feature_absortion_experiment`, which take folders, and into the working folder.
- `sae_probes.generate_model_activations.ensure_dataset_activations` is all that asks for
  activations, and calls `generate_single_dataset_activations` by keywords for each dataset whose
  file is not there.
- `sparse_probing_sae_probes.main` calls `run_baseline_evals` by keywords, which writes a file for
  each dataset, named by `run_baselines.get_baseline_save_path`.
- `sae_probes.DATASETS` has the names of `sae_probes_datasets.py`, whose texts are in its wheel.
- `autointerp.main` gets its tokens by `dataset_utils.load_and_tokenize_dataset`, and asks by
  `OpenAI(api_key=...)` and its `chat.completions.create`, from a `ThreadPoolExecutor`.
- `autointerp.main.AutoInterp.gather_data` takes, of each latent, windows of tokens at random, of
  tokens and codes where it is strongest, and of tokens and codes at more places, by
  `index_with_buffer` of its module; the random ones are the last `Examples` that it shuffles.
- `ravel.main` gets its model by `AutoModelForCausalLM.from_pretrained` and its tokenizer by
  `AutoTokenizer.from_pretrained`, both named by `LLM_NAME_MAP`, reads what the model knows from a
  file in `artifact_dir` that `get_instance_name` names, which `run_eval_single_dataset` makes from
  the files in `base` there, and finds layers by `activation_collection.get_module` alone.
- `unlearning.main` knows a language model by its `cfg.model_name`, gets questions by
  `metrics.load_dataset`, and its corpus (a file below the working folder) and its text (by
  `feature_activation.load_dataset`) in `get_shuffled_forget_retain_tokens`, the first that draws at
  random; reads the numbers of questions from one of the files of `save_target_question_ids`, and
  nothing that `get_baseline_metrics` gives; and scores the table that `get_metrics_df` makes.
- the loaders `CUSTOM_LOADERS` of `sae_bench.custom_saes` read two files, each named by
  `hf_hub_download`.
- `SparseProbingSaeMetrics`, `SaeProbesSaeMetrics`, `ScrMetrics` and `TppMetrics` have a field for
  each k and N that is reported.
"""
