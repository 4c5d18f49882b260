"""Wrong command lines: every mistake is named once, with its cure, and nothing else is."""

import shlex
from pathlib import Path

import pytest

from sae_plugins.entrypoints.main import main

STUDY = """\
reference: l2
modles: {}
models:
  toy:
    train: {model_name: "synthetic:toy"}
    suites: {ground-trut: {}}
    target_l0: [-1]
arms:
  l1: {kind: baselin, train: {lrr: 1, seed: 5}}
"""

LONG = "a" * 300

LINES = {
    # one mistake
    "trian": ["no command 'trian': did you mean 'train'?"],
    "study runn quick": ["no command 'study runn': did you mean 'study run'?"],
    "train --l1_warm_up_steps 5000 --training_tokens 100k": [
        "--l1_warm_up_steps 5000 is more than the run's 97 steps"
    ],
    "train --architecture jumprelu --l0_warm_up_steps 98 --training_tokens 100k": [
        "--l0_warm_up_steps 98 is more than the run's 97 steps"
    ],
    "train --version": ["--version goes to the program itself: `sae-plugins --version`"],
    "--verison": ["no flag --verison: did you mean '--version'?"],
    "train --plugin reodrer": ["no plugin 'reodrer' is installed: did you mean 'reorder'?"],
    "train --plugin hybrid-order --start 200": ["no flag --start: did you mean '--reorder.start'?"],
    "train --plugin reorder --strat 200": ["no flag --strat: did you mean '--reorder.start'?"],
    "train --cooldown 5": [
        "no flag --cooldown: did you mean '--reorder.cooldown' with --plugin reorder?"
    ],
    "train --decay .5": [
        "no flag --decay: did you mean '--averaged-weights.decay' or '--firing-frequency.decay' or "
        "'--input-norm-l1.decay' or '--post-hoc-threshold.decay' or '--reorder.decay' with "
        "--plugin of the same name?"
    ],
    "train --plugin reorder --resampel.every 5": [
        "--resampel.every: no plugin 'resampel' is installed: did you mean 'resample'? It has rule,"
    ],
    "train --resampel.treshold .1": [
        "no plugin 'resampel' is installed: did you mean '--resample.threshold' with --plugin "
        "resample?"
    ],
    "train --plugin hybrid-order --hybrid-order.start 9": [
        "'hybrid-order' has no options of its own: did you mean '--reorder.start'?"
    ],
    "train --recipe hybrd-order-demo": [
        "no recipe 'hybrd-order-demo': did you mean 'hybrid-order-demo'?"
    ],
    "train --model_name synthetic:tiny-toy": [
        "--model_name synthetic:tiny-toy: no synthetic model 'tiny-toy': did you mean 'toy'?"
    ],
    "train --model_name sae-plugin-world": [
        "--model_name sae-plugin-world: did you mean 'sae-plugins-world'?"
    ],
    "train --model_name synthetc:toy --eval_samples 9": [
        "--model_name synthetc:toy: did you mean 'synthetic:toy'?"
    ],
    "train reorder": ["'reorder' is no flag: flags begin with --"],
    "train --training_tokens 1.5e0": ["--training_tokens '1.5e0': it must be a whole number"],
    "train --output_path": ["--output_path needs a value"],
    "evaluate runs/a --suite sparse-probe": [
        "no suite 'sparse-probe' is installed: did you mean 'sparse-probing' or 'sae-probes'?"
    ],
    "evaluate runs/a --exact=maybe": ["--exact 'maybe': it must be true or false"],
    "evaluate runs/a --context_size 64": [
        "no flag --context_size: did you mean '--core.context_size'?"
    ],
    "evaluate --suite core runs/a": ["runs/a is no suite: SAEs are named before the flags"],
    "evaluate runs/a --suite scr --core.context_size 64": [
        "--core.context_size: the suite 'core' is not chosen: add --suite core"
    ],
    "evaluate runs/a --data wrld --cache_path wrong.yaml --output_path wrong.yaml": [
        "--output_path wrong.yaml is a file; name a folder",
        "--cache_path wrong.yaml is a file; name a folder",
        "--data wrld: neither 'world' nor 'hub' nor a folder; did you mean 'world'?",
    ],
    "evaluate runs/a --suite scr --scr.n_values 0": ["--scr.n_values 0: it must be at least 1"],
    "evaluate runs/a --suite scr --scr.n_values 5 5 --scr.pairs []": [
        "--scr.n_values: 5 is given twice: name each once",
        "--scr.pairs: name a pair at least",
    ],
    "evaluate runs/a --suite sparse-probing --sparse-probing.k_values -1": [
        "--sparse-probing.k_values -1: it must be at least 1"
    ],
    "evaluate runs/a --suite tpp sae-probes --tpp.dataset_names fancyzhx/ag_news "
    "--sae-probes.dataset_names 96_spam 96_spam": [
        "--tpp.dataset_names: no dataset 'fancyzhx/ag_news'; known: LabHC",
        "--sae-probes.dataset_names: no dataset '96_spam'; did you mean '96_spam_is'?",
    ],
    "evaluate runs/a --suite sae-probes --sae-probes.dataset_names 96_spam_is 96_spam_is": [
        "--sae-probes.dataset_names: 96_spam_is is given twice: name each once"
    ],
    "evaluate runs/a --suite ground-truth --data hub --model_class_name TransformerBridge": [
        "--data hub: no suite of ground-truth uses it; leave it out",
        "--model_class_name TransformerBridge: no suite of ground-truth uses it; leave it out",
    ],
    "evaluate runs/a --suite core --device cuda:x": ["--device cuda:x cannot be used: "],
    "study run quik": ["no study 'quik': did you mean 'quick'?"],
    "study report": ["give one STUDY: sae-plugins study report STUDY"],
    "plugins show reodrer": ["no plugin 'reodrer' is installed: did you mean 'reorder'?"],
    "recipes show gemma": ["no recipe 'gemma': did you mean 'gemma-2-2b'?"],
    "recipes list --long": ["no flag --long: `sae-plugins recipes list --help` lists all flags"],
    "completion fish": ["no completion for 'fish', only for bash and zsh"],
    # an option without its plugin or its value
    "train --plugin reorder --.start 5": ["no flag --.start: did you mean '--reorder.start'?"],
    "train --.x 5": ["no flag --.x: `sae-plugins train --help` lists all flags"],
    "evaluate runs/a --suite core --.context_size 5": [
        "no flag --.context_size: did you mean '--core.context_size'?"
    ],
    "evaluate --.x 5": ["no flag --.x: `sae-plugins evaluate --help` lists all flags"],
    "train --plugin reorder --reorder.start": ["--reorder.start needs a value"],
    "train --plugin reorder --reorder.key --lr 1": ["--reorder.key needs a value"],
    "evaluate runs/a --core.context_size": ["--core.context_size needs a value"],
    # empty texts, as variables of the shell are that are not set
    "train --output_path ''": ["--output_path: it is empty"],
    "train --model_name= --recipe ' '": ["--model_name: it is empty", "--recipe: it is empty"],
    "train --checkpoint_every=": ["--checkpoint_every: it is empty"],
    "train --plugin ''": ["--plugin: it is empty"],
    "evaluate runs/a --suite ''": ["--suite: it is empty"],
    "evaluate ''": ["what stands for SAE... is empty"],
    "study run ''": ["what stands for STUDY is empty"],
    "study run ' ' --output_path=": [
        "what stands for STUDY is empty",
        "--output_path: it is empty",
    ],
    "recipes show ''": ["what stands for RECIPE is empty"],
    "upload runs/a ''": ["what stands for RUN... USER/REPO is empty"],
    # a flag that there is not, and what may be an operand behind it
    "evaluate --dryrun runs/a": ["no flag --dryrun: did you mean '--dry_run'?"],
    "study run --job 2 quick": ["no flag --job: did you mean '--jobs'?"],
    "study run --job quick": ["no flag --job: did you mean '--jobs'?"],
    "upload --dryrun runs/a me/saes": ["no flag --dryrun: did you mean '--dry_run'?"],
    "train --recipe hybrid-order-demo --without hybrid-order": [
        "--without 'hybrid-order': it is a method, and --without takes mechanisms: those of "
        "hybrid-order are "
    ],
    "train --recipe hybrid-order-demo --without reorder --reorder.start 5": [
        "--reorder.start: --without leaves the plugin 'reorder' out; leave the option out, too"
    ],
    "train --reorder.start 200": [
        "--reorder.start: the plugin 'reorder' is not chosen: add --plugin reorder; or leave the "
        "option out"
    ],
    "train --recipe hybrid-order-demo --resample.every 200": [
        "'resample' is not chosen: add --plugin hybrid-order resample (--plugin replaces the "
        "recipe's); or leave the option out"
    ],
    "train --k 8": [
        "--k: standard SAEs do not have it; topk, abstopk, batchtopk and matryoshka_batchtopk SAEs "
        "(--architecture) do"
    ],
    "train --l1 5": ["no flag --l1: did you mean '--l1_coefficient'?"],
    "train --layer 3": ["no flag --layer: did you mean '--hook_name'?"],
    "train --learning_rate 3": ["no flag --learning_rate: did you mean '--lr'?"],
    "train --dryrun": ["no flag --dryrun: did you mean '--dry_run'?"],
    "train --markdown": ["no flag --markdown: `sae-plugins train --help` lists all flags"],
    "train --L1_coefficient 5": ["did you mean '--l1_coefficient'?"],
    "train --width 5": ["no flag --width: did you mean '--d_sae'?"],
    "train --halp": ["no flag --halp: did you mean '--help'?"],
    "train -r": ["'-r' is no flag: flags begin with --"],
    "train --reorder 200": ["no flag --reorder: did you mean '--plugin reorder'?"],
    "train --plugin reorder --reorder 200": ["the options of reorder are --reorder.interval,"],
    "train --hybrid-order": ["no flag --hybrid-order: did you mean '--plugin hybrid-order'?"],
    "train --plugin REORDER": ["no plugin 'REORDER' is installed: did you mean 'reorder'?"],
    "train --plugin merge,reorder": ["separate several names by blanks, not by commas"],
    "train --recipe hybrid-order-demo.yaml": [
        "no recipe file hybrid-order-demo.yaml: did you mean 'hybrid-order-demo'?"
    ],
    "study run quick.yaml": ["no study file quick.yaml: did you mean 'quick'?"],
    "plugins install foo": [
        "no command 'plugins install': plugins come with Python packages, which `pip install`"
    ],
    "help": ["no command 'help': did you mean `sae-plugins --help`?"],
    "version": ["no command 'version': did you mean `sae-plugins --version`?"],
    "recipes run quick": ["did you mean `sae-plugins train --recipe RECIPE`?"],
    "study quick": ["no command 'study quick': did you mean `sae-plugins study run quick`?"],
    "plugins hybrid-order": ["no command 'plugins hybrid-order': known: list, new, show"],
    # what is given more than once, which is no mistake but is said
    "train --seed 1 --seed 2 --plugin reorder --reorder.start 5 --reorder.start=6 --lr fast": [
        "note: --seed is given more than once; the last one counts",
        "note: --reorder.start is given more than once; the last one counts",
        "--lr 'fast': it must be a number",
    ],
    "evaluate --seed 1 --seed 2 --suite core --suite scr": ["name an SAE"],
    # names that no file can have
    f"train --output_path {LONG}": [f"--output_path {LONG[:60]}...: file name too long"],
    f"train --recipe={LONG}.yaml": ["--recipe /"],
    f"train --resume {LONG}": [f"--resume {LONG[:60]}...: file name too long"],
    f"train --n_checkpoints 1 --checkpoint_path {LONG}": ["file name too long"],
    f"evaluate {LONG}": [f"error: {LONG[:60]}...: file name too long"],
    f"evaluate runs/a --output_path {LONG}": ["--output_path aaa"],
    f"study status {LONG}.yaml": ["file name too long"],
    f"study status quick --output_path {LONG}": ["--output_path aaa"],
    f"recipes show {LONG}.yaml": ["file name too long"],
    # combinations that are wrong
    "train --architecture topk --plugin linear-l1 --l1_coefficient 2": [
        "--l1_coefficient: topk SAEs do not have it; standard and gated SAEs (--architecture) do",
        "--architecture topk: plugin 'linear-l1' does not work on topk SAEs",
    ],
    "train --training_tokens 10k --train_batch_size_tokens 1k --lr_warm_up_steps 2k": [
        "--lr_warm_up_steps 2000 and --lr_decay_steps 0 do not fit into the run's 10 steps"
    ],
    # several at once
    "train --plugin reodrer --reodrer.strat 5 --reorder.window big --lrr 3 --lr fast": [
        "--lr 'fast': it must be a number",
        "no plugin 'reodrer' is installed: did you mean 'reorder'?",
        "no flag --lrr: did you mean '--lr'?",
        "no option --reorder.strat: did you mean '--reorder.start'?",
        "--reorder.window 'big': it must be a whole number",
    ],
    "train --recipe hybrid-oder-demo --without reoder --reorder.interval 0 --seed -1 --clip 0": [
        "--seed -1: it must be at least 0",
        "no recipe 'hybrid-oder-demo': did you mean 'hybrid-order-demo'?",
        "--without 'reoder': it is not chosen; did you mean 'reorder'",
        "--clip 0.0: it must be greater than 0 or none",
    ],
    "train --architecture topkk --k many --accumulate 0 --loss_form l1 --plugin zzz --zzz.a 1": [
        "--architecture 'topkk': did you mean 'topk'?",
        "--k 'many': it must be a number",
        "--loss_form 'l1': it must be 'sum_of_squares', 'l2_norm', 'mean' or none",
        "no plugin 'zzz' is installed: known: activation-threshold,",
        "--accumulate 0: it must be at least 1",
    ],
    "train --resume runs/a --recipe quick --lrr 1": [
        "--recipe cannot be combined with --resume",
        "no flag --lrr: did you mean '--lr'?",
    ],
    "evaluate --suite cor --seed x --preset fast --dryrun": [
        "--seed 'x': it must be a whole number",
        "--preset 'fast': it must be 'canonical', 'quick' or 'paper'",
        "no suite 'cor' is installed: did you mean 'core'?",
        "no flag --dryrun: did you mean '--dry_run'?",
        "name an SAE: the folder of a run, or RELEASE:SAE_ID",
    ],
    "study run quick --jobs 0": ["--jobs 0: it must be at least 1"],
    "study run wrong.yaml --jobs none --output runs": [
        "--jobs 'none': it must be a whole number",
        "no flag --output: did you mean '--output_path'?",
        "study wrong.yaml: models.toy.target_l0: L0s to reach must be greater than 0",
        "study wrong.yaml: arms.l1.kind 'baselin': did you mean 'baseline'?",
        "study wrong.yaml: there is no key modles: did you mean 'models'?",
        "study wrong.yaml: reference: no arm 'l2': did you mean 'l1'?",
        "study wrong.yaml: models.toy.suites.ground-trut: no suite 'ground-trut' is installed",
        "study wrong.yaml: arm l1 on model toy: there is no flag --lrr: did you mean '--lr'?",
        "study wrong.yaml: arm l1 on model toy: seed: the study itself decides it; leave it out",
    ],
    "upload runs/a --revision .. --results nowhere --privat": [
        "no flag --privat: did you mean '--private'?",
        "name the folders of runs, and last the repository: USER/REPO",
        "--revision '..' is no branch; give a name such as v1",
        "--results nowhere is no folder of `sae-plugins evaluate`",
    ],
}


@pytest.mark.parametrize("line", LINES)
def test_all_that_is_wrong_is_said_at_once(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    Path("wrong.yaml").write_text(STUDY)
    assert main(shlex.split(line)) == 2
    said = capsys.readouterr()
    sentences = said.err.splitlines()
    assert said.out == ""
    assert all(sentence.startswith("sae-plugins") for sentence in sentences)
    for culprit_and_cure in LINES[line]:
        assert [culprit_and_cure in sentence for sentence in sentences].count(True) == 1, said.err
    assert len(sentences) == len(LINES[line]), said.err
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.yaml"]
