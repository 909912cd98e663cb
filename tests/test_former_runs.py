"""What the scripts promise about the files of a former run: a mistake, a kill or a full disk loses none of them."""

import shutil
from pathlib import Path

import pandas
import pytest
from accelerate import Accelerator
from helpers import CAPTIONS, config_file, prepare, write_corpus, write_sound

import build_datastore
import clips.features
import eval as evaluation_script
import find_leaks
import prepare as prepare_script
import retrieval_rgmc
import train
from clips.features import compute_features
from clips.locks import only_run
from clips.outputs import replaced_together
from clips.rows import load_captions
from evaluation import sanity
from feature_extraction_rgmc import RGMCFeatureExtractor
from retrieval_rgmc import CaptionDatastore


class Killed(BaseException):
    pass


def killed(*args, **kwargs):
    raise Killed


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, without those that only say what has been looked at."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in files.items() if name not in ("probed.jsonl", "hashed.jsonl")}


@pytest.fixture
def checkpoint(make_model, processor, corpus, tmp_path) -> Path:
    model = make_model()
    songs = [
        {"id": f"train-{row}", "audio": str(corpus / "train" / f"{row}.wav"), "caption": CAPTIONS[row]}
        for row in range(3)
    ]
    model.set_datastore(CaptionDatastore.build(model, songs, processor))
    model.save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def evaluate(checkpoint, corpus, tmp_path):
    def run(**options):
        options = {"model": str(checkpoint), "dataset": str(corpus), "cache_dir": str(tmp_path / "cache"), **options}
        quick = {"meteor": False, "clap_model": None, "masked": False, "listening": False, "bootstrap": 0}
        args = evaluation_script.EvaluationArguments(output_dir=str(tmp_path / "out"), num_proc=1, **quick, **options)
        return evaluation_script.evaluate_checkpoint(args, Accelerator())

    return run


# -- replacing --------------------------------------------------------------------------------------------------------


def test_new_files_take_the_place_of_old_ones_when_all_are_there(tmp_path):
    (tmp_path / "plots").mkdir()
    for name in ("table", "report", "leaks", "mine", "plots/old.png"):
        (tmp_path / name).write_text("old")
    before = contents(tmp_path)
    for error in (OSError, Killed):
        with pytest.raises(error), replaced_together(tmp_path, last="table", stale=("leaks",)) as staging:
            (staging / "table").write_text("half")
            raise error
        assert contents(tmp_path) == before
    (tmp_path / ".incomplete").mkdir()
    (tmp_path / ".incomplete" / "report").write_text("of a killed run")
    with replaced_together(tmp_path, last="table", stale=("leaks",)) as staging:
        (staging / "plots").mkdir()
        for name in ("table", "plots/new.png"):
            (staging / name).write_text("new")
    assert contents(tmp_path) == {"table": b"new", "plots/new.png": b"new", "report": b"old", "mine": b"old"}


# -- mistakes ---------------------------------------------------------------------------------------------------------


def test_a_mistake_of_prepare_leaves_the_former_corpus(tmp_path, monkeypatch):
    for number in range(6):
        write_sound(tmp_path / f"raw/{number}.wav", seed=number)
        (tmp_path / f"raw/{number}.txt").write_text(f"a song of number {number}")
    out = tmp_path / "out"
    options = ["any", "--source", tmp_path / "raw", "--validation", 1, "--test", 1, "--output_dir", out]
    prepare(*options, "--num_proc", 1)
    before = contents(out)
    assert {"metadata.parquet", "leakage.json", "report.html", "rejected.jsonl"} <= before.keys()
    with pytest.raises(ValueError, match="test"):
        prepare(*options, "--test", 60)
    for name in ("write_report", "write_leaks"):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(prepare_script, name, killed)
            prepare(*options)
    assert contents(out) == before
    shutil.copytree(tmp_path / "raw", tmp_path / "broken")
    for path in (tmp_path / "broken").glob("*.wav"):
        path.write_bytes(b"")
    broken = [*options[:2], tmp_path / "broken", *options[3:]]
    with pytest.raises(ValueError, match=r"no row of 6 can be used .* \S+rejected\.failed\.jsonl says why"):
        prepare(*broken)
    assert contents(out).keys() - before.keys() == {"rejected.failed.jsonl"}
    assert before.items() <= contents(out).items()
    prepare(*options, "--validation", 0, "--test", 0)
    assert before.keys() - contents(out).keys() == {"leakage.json"}
    assert not contents(out).keys() - before.keys()


def test_sounds_that_prepare_has_written_are_not_overwritten_by_those_of_another_table(tmp_path):
    def table(name: str, seed: int) -> Path:
        sounds = [write_sound(tmp_path / f"{name}{row}.wav", seed=seed + row) for row in range(3)]
        rows = [{"path": sound.name, "bytes": sound.read_bytes()} for sound in sounds]
        frame = pandas.DataFrame({"id": ["a", "b", "c"], "caption": ["one", "two", "three"], "audio": rows})
        (tmp_path / name).mkdir()
        frame.to_parquet(tmp_path / name / "table.parquet")
        return tmp_path / name / "table.parquet"

    options = ["any", "--validation", 0, "--test", 0, "--output_dir", tmp_path / "out", "--source"]
    prepare(*options, table("first", 0))
    before = contents(tmp_path / "out")
    assert sum(name.startswith("audio/") for name in before) == 3
    with pytest.raises(ValueError, match="test"):
        prepare(*options, table("second", 10), "--test", 60)
    assert before.items() <= contents(tmp_path / "out").items()
    assert len(pandas.read_parquet(tmp_path / "out" / "metadata.parquet")) == 3


def test_a_mistake_of_eval_leaves_the_former_results(evaluate, checkpoint, tmp_path, monkeypatch):
    evaluate()
    before = contents(tmp_path / "out")
    assert {"results.json", "predictions.jsonl", "report.html", "resamples.parquet"} <= before.keys()
    for mistake in ({"dataset": str(tmp_path / "nothing")}, {"caption_column": "nope"}, {"split": "nope"}):
        with pytest.raises((ValueError, OSError)):
            evaluate(**mistake)
    with pytest.raises(ValueError, match=r"nothing\.jsonl"):
        evaluate(predictions=["other=nothing.jsonl"])
    shutil.copytree(checkpoint, tmp_path / "damaged")
    weights = tmp_path / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(OSError, match="damaged"):
        evaluate(model=str(tmp_path / "damaged"))
    assert contents(tmp_path / "out") == before
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(evaluation_script, "write_report", killed)
        evaluate(seed=1)
    found = contents(tmp_path / "out")
    assert {name: found.get(name) for name in before} == before
    assert all(name.startswith("unfinished/") for name in found.keys() - before.keys())
    evaluate(seed=1)
    assert contents(tmp_path / "out").keys() == before.keys()


def test_a_card_that_cannot_be_written_is_not_lost(evaluate, checkpoint, monkeypatch):
    card = checkpoint / "README.md"
    card.write_text("---\nlicense: mit\n---\n\n# A model\n", encoding="utf-8")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("reporting.model_card.os.replace", killed)
        evaluate(update_model_card=True)
    assert card.read_text(encoding="utf-8") == "---\nlicense: mit\n---\n\n# A model\n"
    evaluate(update_model_card=True)
    assert "## Results" in card.read_text(encoding="utf-8")


def test_a_mistake_of_find_leaks_or_sanity_leaves_the_former_report(corpus, tmp_path, monkeypatch):
    args = find_leaks.LeakageArguments(dataset=str(corpus), output_dir=str(tmp_path / "leaks"), num_proc=1)
    find_leaks.main(args, Accelerator())
    before = contents(tmp_path / "leaks")
    assert before.keys() == {"leakage.json", "report.md"}
    args.ngram = 2
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(find_leaks, "write_leak_report", killed)
        find_leaks.main(args, Accelerator())
    args.caption_column = "nope"
    with pytest.raises(ValueError, match="nope"):
        find_leaks.main(args, Accelerator())
    assert contents(tmp_path / "leaks") == before

    write_corpus(tmp_path / "corpus", {"test": CAPTIONS})
    args = sanity.SanityArguments(dataset=str(tmp_path / "corpus"), output_dir=str(tmp_path / "sanity"), bootstrap=0)
    sanity.main(args)
    before = contents(tmp_path / "sanity")
    assert before.keys() == {"sanity.json", "sanity.jsonl"}
    args.seed = 1
    with monkeypatch.context() as patch, pytest.raises(TypeError):
        patch.setattr(sanity, "asdict", lambda args: {"not": {"json"}})
        sanity.main(args)
    assert contents(tmp_path / "sanity") == before


def test_a_mistake_of_build_datastore_leaves_the_former_datastore(checkpoint, corpus, tmp_path, monkeypatch):
    def build(**options):
        options = {"model": str(checkpoint), "dataset": str(corpus), "cache_dir": str(tmp_path / "cache"), **options}
        args = build_datastore.DatastoreArguments(output_dir=str(tmp_path / "store"), num_proc=1, **options)
        return build_datastore.main(args, Accelerator())

    build(split="test")
    before = contents(tmp_path / "store")
    assert len(before) == 3
    for mistake in ({"caption_column": "nope"}, {"string_factory": "nope"}, {"split": "nope"}):
        with pytest.raises((ValueError, OSError), match="nope"):
            build(**mistake)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):

        def fill(*args):
            raise OSError(28, "No space left on device")

        patch.setattr(retrieval_rgmc, "save_file", fill)
        build()
    assert contents(tmp_path / "store") == before
    assert not (tmp_path / "store" / ".incomplete").exists()
    assert len(build()) > len(build(split="test"))


# -- two runs at once -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["train", "eval", "prepare", "build_datastore", "find_leaks"])
def test_the_second_of_two_runs_is_told_and_touches_nothing(script, corpus, tmp_path):
    out = tmp_path / script
    out.mkdir()
    (out / "metadata.parquet").write_text("of the first run")
    options = {"dataset": str(corpus), "output_dir": str(out), "num_proc": 1}

    def second():
        if script == "train":
            train.main([str(config_file(tmp_path, corpus, script)), "--overwrite_output_dir", "true"])
        elif script == "eval":
            evaluation_script.evaluate_checkpoint(
                evaluation_script.EvaluationArguments(model="checkpoint", **options), Accelerator()
            )
        elif script == "prepare":
            prepare_script.main(["any", "--source", str(corpus / "test"), "--output_dir", str(out)])
        elif script == "build_datastore":
            build_datastore.main(build_datastore.DatastoreArguments(model="checkpoint", **options), Accelerator())
        else:
            find_leaks.main(find_leaks.LeakageArguments(**options), Accelerator())

    with only_run(out, "--output_dir first"):
        before = contents(out)
        with pytest.raises(FileExistsError, match=rf"--output_dir \S*{script} is being written by another run"):
            second()
        assert contents(out) == before


def test_two_runs_that_fill_one_cache_at_once_both_end_right(corpus, tmp_path, monkeypatch):
    rows, extractor = load_captions(str(corpus), "test"), RGMCFeatureExtractor()

    def features(cache: str):
        options = {"skipped_file": tmp_path / "skipped.jsonl", "cache_dir": str(tmp_path / cache)}
        return compute_features(rows, extractor, "test", **options)

    found, extract = [], clips.features._extract

    def meanwhile(*args, **kwargs):
        if not found:  # at the first clip, another run computes the same ones
            found.append(None)
            found[0] = features("shared")
        return extract(*args, **kwargs)

    wanted = features("alone")
    monkeypatch.setattr(clips.features, "_extract", meanwhile)
    found.append(features("shared"))
    for each in found:
        assert each.ids == wanted.ids
        assert (each.read([0, 1, 2, 3]) == wanted.read([0, 1, 2, 3])).all()
    assert not [path for path in (tmp_path / "shared").rglob("*.arrow.*")]
