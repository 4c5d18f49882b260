"""The text of a run.

    --dataset_path --rows--> column --documents--> held out, and trained on --prompts--> training
    `loading`                `columns`             `splits`, `documents`      `reading`

`tokenized` checks tokens that come in place of text.
"""
