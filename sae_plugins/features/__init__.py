"""Feature pages: what each feature of an SAE fires on, as a folder that a browser opens from disk.

`text` reads prompts, `collect` streams them once through the language model and the SAEs, and
`logits`, `neighbours`, `twins` and `order` add what weights and firings say of the features.
`pages` puts all of it into shards that `page.html` loads when a feature is looked at.
"""
