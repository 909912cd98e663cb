"""
Command lines: options from dataclasses, help in groups, and a user's mistakes in one line with exit status 2.

A dataclass names the group of its options in the class attribute `group`. The dataclasses at the end hold the options
that scripts share; a script's own inherit them.
"""

import os
import re
import sys
import time
import traceback
from argparse import SUPPRESS, ArgumentError, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml
from huggingface_hub import file_exists, repo_exists, try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import GatedRepoError
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 5.0  # seconds; see `fail`
HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


# -- parsing ----------------------------------------------------------------------------------------------------------


def parse(
    dataclasses: type | Sequence[type],
    argv: list[str],
    description: str | None = None,
    *,
    defaults: dict[str, Any] | None = None,
    prog: str | None = None,
    positional: str | None = None,
) -> tuple:
    """
    Reads a command line into dataclasses. A mistake in it ends the process with one line and exit status 2.

    Args:
        dataclasses (`type` or `Sequence[type]`): Their fields are the options.
        argv (`list[str]`): The command line without the script's name.
        description (`str`, *optional*): What `--help` prints above the options.
        defaults (`dict[str, Any]`, *optional*): Defaults that replace those of the fields.
        prog (`str`, *optional*, defaults to the running script): Name of the script.
        positional (`str`, *optional*): A field of lists whose words are given without a name, anywhere.

    Returns:
        An instance of each dataclass.
    """
    parser = OptionParser(dataclasses, defaults=defaults, positional=positional, description=description, prog=prog)
    return parser.parse(argv)


class OptionParser(HfArgumentParser):
    """
    An `HfArgumentParser` that takes no abbreviations. Its help shows groups, one spelling of each option, and each
    default once; hyphens for underscores are understood too. With `config_file` a yaml file of options may come first;
    the command line wins over it, and `--field.key value` sets one entry of a field that is a dict. The other arguments
    are those of [`parse`], and `kwargs` those of `argparse.ArgumentParser`.
    """

    def __init__(
        self,
        dataclasses: type | Sequence[type] = (),
        config_file: bool = False,
        defaults: dict[str, Any] | None = None,
        positional: str | None = None,
        **kwargs,
    ):
        self.config_file, self.own_defaults, self.positional = config_file, defaults or {}, positional
        self.flags: list[str] = []
        self.waiting: list[tuple[str, str, dict[str, Any]]] = []  # options, until all are known
        self.options: dict[str, dict[str, Any]] = {}  # of the dataclasses, by name: what argparse knows of them
        self.required_options: list[str] = []
        self.titles: dict[str, str] = {}  # of each option's group
        ranks: dict[str, int] = {}
        dataclasses = list(dataclasses) if isinstance(dataclasses, Sequence) else [dataclasses]
        for whole in dataclasses:
            for part in filter(is_dataclass, reversed(whole.__mro__)):
                for option in fields(part):
                    self.titles.setdefault(option.name, getattr(part, "group", "options"))
                    ranks.setdefault(option.name, 2 if part.__module__ == __name__ else int(part is not whole))
        if dataclasses:
            first = "[options.yaml] " if config_file else f"{_singular(positional)} ... " if positional else ""
            kwargs["usage"] = f"%(prog)s {first}--option value ..."
        kwargs["formatter_class"] = partial(RawDescriptionHelpFormatter, max_help_position=32)
        super().__init__(dataclasses, allow_abbrev=False, exit_on_error=False, **kwargs)
        # A dataclass's own options come first, then those that it inherits, then those that scripts share.
        groups: dict[str, Any] = {}
        for name, flag, kwargs in sorted(self.waiting, key=lambda option: ranks[option[0]]):
            title = self.titles[name]
            groups[title] = groups.get(title) or self.add_argument_group(title)
            groups[title].add_argument(flag, **kwargs)

    def add_argument(self, *flags: str, **kwargs):
        """As `ArgumentParser.add_argument`; an option of a dataclass goes to its group, in one spelling."""
        name = kwargs.get("dest", flags[0].lstrip("-"))
        if name == self.positional:
            kind: dict[str, Any] = {"nargs": "*", "metavar": _singular(name), "default": [], "help": kwargs["help"]}
            return self.waiting.append((name, name, kind))
        self.flags.append(flags[0])
        if name not in self.titles:
            return super().add_argument(*flags, **kwargs)
        if kwargs.get("action") == "store_false":  # --no_field, the same as --field false
            return self.waiting.append((name, flags[0], {**kwargs, "help": SUPPRESS}))
        default = kwargs["default"] = self.own_defaults.get(name, kwargs.get("default"))
        if kwargs.pop("required", False):  # the yaml file may have it
            self.required_options.append(name)
            kwargs["help"] += " (required)"
        elif default is not False and default not in (None, {}, []):
            kwargs["help"] += f" (default: {_shown(default)})".replace("%", "%%")
        if self.positional and kwargs["type"] is string_to_bool:  # `--strict song.mp3`: the next word is no value
            return self.waiting.append((name, flags[0], {"action": "store_true", "help": kwargs["help"]}))
        kwargs["type"] = {dict: mapping, string_to_bool: boolean}.get(kwargs["type"], kwargs["type"])
        if "choices" not in kwargs:
            metavars = {int: "N", float: "X", mapping: "MAPPING", boolean: "BOOL"}
            kwargs["metavar"] = metavars.get(kwargs["type"], "TEXT")
        self.options[name] = kwargs
        return self.waiting.append((name, flags[0], kwargs))

    def parse(self, argv: list[str]) -> tuple:
        """Reads a command line into an instance of each dataclass; see [`parse`]."""
        argv, namespace = list(argv), Namespace()
        if self.config_file and argv and argv[0].endswith((".yaml", ".yml")):
            self._read_yaml(argv.pop(0), namespace)
        words, entries = self._take_entries(argv)
        namespace = self.parse_args(words, namespace)
        for name, values in entries.items():
            setattr(namespace, name, {**getattr(namespace, name), **values})
        missing = [f"--{name}" for name in self.required_options if getattr(namespace, name) is None]
        if missing:
            self.error(f"missing {', '.join(missing)}; --help lists the options")
        try:
            return self.parse_dict(vars(namespace))
        except ValueError as error:
            self.error(str(error))

    def parse_args(self, args=None, namespace=None):
        words: list[str] = []
        given = list(sys.argv[1:] if args is None else args)
        end = given.index("--") if self.positional and "--" in given else len(given)
        for word in given[:end]:
            flag, equals, value = word.partition("=")
            spelt = f"--{flag[2:].replace('-', '_')}"
            words.append(spelt + equals + value if flag.startswith("--") and spelt in self.flags else word)
        try:
            read = self.parse_known_intermixed_args if self.positional else self.parse_known_args
            namespace, unknown = read(words, namespace)
        except ArgumentError as error:
            kinds = {"int": "a whole number", "float": "a number"}
            message = re.sub(
                "invalid (int|float) value: ", lambda found: f"expected {kinds[found[1]]}, found ", error.message
            )
            self.error(": ".join(filter(None, (error.argument_name, message))))
        if unknown:
            self._refuse(unknown)
        if self.positional:
            setattr(namespace, self.positional, [*getattr(namespace, self.positional), *given[end + 1 :]])
        return namespace

    def error(self, message: str) -> NoReturn:
        fail(message, self.prog)

    def _refuse(self, words: list[str]) -> NoReturn:
        option = next((word.partition("=")[0] for word in words if word.startswith("-")), None)
        if option:
            near = did_you_mean(option.lstrip("-"), [flag.lstrip("-") for flag in self.flags], "--")
            self.error(f"unknown option {option}{near or '; --help lists the options'}")
        if self.config_file and words[0].endswith((".yaml", ".yml")):
            self.error(f"{words[0]}: the yaml file comes first, before all options")
        if self.config_file and Path(f"{words[0]}.yaml").is_file():
            self.error(f"unexpected '{words[0]}'; did you mean {words[0]}.yaml?")
        self.error(f"unexpected '{words[0]}': options are given as --name value")

    def _take_entries(self, argv: list[str]) -> tuple[list[str], dict[str, dict]]:
        """The words that are not of the form `--field.key value`, and the entries that those set."""
        rest: list[str] = []
        entries: dict[str, dict] = {}
        words = iter(argv)
        for word in words:
            flag, equals, value = word.partition("=")
            found = re.fullmatch(r"--([\w-]+)\.(\w+)", flag)
            if not found:
                rest.append(word)
                continue
            name, key = found[1].replace("-", "_"), found[2]
            mappings = [other for other, kwargs in self.options.items() if kwargs["type"] is mapping]
            if name not in mappings:
                near = did_you_mean(flag, [f"--{other}.{key}" for other in mappings])
                self.error(f"unknown option {flag}{near or '; --help lists the options'}")
            value = value if equals else next(words, "--")
            if not equals and value.startswith("--"):
                self.error(f"{flag}: expected one argument")
            try:
                entries.setdefault(name, {})[key] = yaml.safe_load(value)
            except yaml.YAMLError as error:
                self.error(f"{flag}: {value!r} cannot be read as yaml: {_yaml_problem(error)}")
        return rest, entries

    def _read_yaml(self, file: str, namespace: Namespace):
        """Sets the options of a yaml file in `namespace`."""
        try:
            content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except FileNotFoundError:
            self.error(f"{file} does not exist: expected a yaml file of options{near_path(file)}")
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            self.error(f"{file} cannot be read as yaml: {_yaml_problem(error)}")
        content = {} if content is None else content
        if not isinstance(content, dict):
            self.error(f"{file} holds a {type(content).__name__}: expected a line `option: value` for each option")
        for name, value in content.items():
            if name not in self.options:
                near = did_you_mean(str(name), self.options)
                self.error(f"{file}: unknown option {name}{near or '; --help lists the options'}")
            if not self._set(name, value, namespace):
                found = "nothing" if value is None else repr(value)
                self.error(f"{file}: {name}: expected {_expected(self.options[name])}, found {found}")

    def _set(self, name: str, value: Any, namespace: Namespace) -> bool:
        """Sets an option to a value of yaml; returns False if it has another type."""
        kwargs = self.options[name]
        if (value is None and kwargs["default"] is None) or (isinstance(value, dict) and kwargs["type"] is mapping):
            setattr(namespace, name, value)
            return True
        if value is False and "no" in kwargs.get("choices", ()):
            value = "no"  # yaml takes it for a boolean
        wanted = (str, int, float) if kwargs["type"] is boolean or not isinstance(value, bool) else ()
        if not isinstance(value, wanted):
            return False
        try:
            self.parse_known_args([f"--{name}={value}"], namespace)
        except ArgumentError:
            return False
        return True


def _singular(name: str) -> str:
    return name.upper().removesuffix("S")


def mapping(text: str) -> dict:
    """A dict from the command line, as yaml."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = None
    if not isinstance(value, dict):
        raise ArgumentTypeError(f"expected a mapping such as '{{n_layer: 4}}', found {text!r}")
    return value


def boolean(text: str) -> bool:
    try:
        return string_to_bool(text)
    except ArgumentTypeError:
        raise ArgumentTypeError(f"expected true or false, found {text!r}") from None


def _yaml_problem(error: Exception) -> str:
    """What is wrong, in one line: yaml's own message draws the place in several."""
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}, {getattr(error, 'problem', error)}" if mark else str(error)


def _expected(kwargs: dict[str, Any]) -> str:
    if "choices" in kwargs:
        return f"one of {', '.join(kwargs['choices'])}"
    names = {int: "a whole number", float: "a number", boolean: "true or false", mapping: "a mapping"}
    return names.get(kwargs["type"], "text")


def _shown(default: Any) -> str:
    if isinstance(default, (list, tuple)):
        return " ".join(map(str, default))
    return f"{default:g}" if isinstance(default, float) else str(default).lower() if default is True else str(default)


# -- mistakes ---------------------------------------------------------------------------------------------------------


def fail(message: str, prog: str) -> NoReturn:
    """
    Ends the process with one line on stderr and exit status 2.

    Of several processes the main one speaks: the others wait, and the launcher ends them when it has ended. One that is
    still there has a mistake of its own, such as a file that its machine lacks.
    """
    if int(os.environ.get("RANK", 0)) > 0:
        time.sleep(PATIENCE)
    print(f"{prog}: error: {' '.join(line.strip() for line in message.splitlines())}", file=sys.stderr)
    raise SystemExit(2)


@contextmanager
def user_errors():
    """
    Wraps a script: an error that this repository raises ends it as [`fail`] does, because its message tells the user
    what to change. Errors of the program and of libraries keep their traceback. With `TRANSFORMERS_VERBOSITY=debug` all
    errors do. A reader of its output that ends early, such as `head`, ends it without a message.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # here, and not when the interpreter ends
    except BrokenPipeError:  # of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("TRANSFORMERS_VERBOSITY") == "debug" or not _is_raised_here(error):
            raise
        fail(str(error), Path(sys.argv[0]).name)


def _is_raised_here(error: Exception) -> bool:
    """Whether a `raise` of this repository made this error, and not a library or an operation that went wrong."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    file = Path(last.filename).resolve()
    ours = file.is_relative_to(ROOT) and "site-packages" not in file.parts
    return ours and re.match(r"raise \w+\(", last.line or "") is not None


def choose(argv: list[str], names: Iterable[str], prog: str, usage: str) -> str:
    """The first argument, which must be one of `names`; `--help` in its place prints `usage` and ends the script."""
    name, names = argv[0] if argv else "", list(names)
    if name in ("-h", "--help"):
        print(usage)
        raise SystemExit
    if name not in names:
        found = f"'{name}'" if name else "nothing"
        fail(f"expected one of {', '.join(names)}, found {found}{did_you_mean(name, names)}", prog)
    return name


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a message: the known word that is most like `word`, with `prefix`, or nothing."""
    found = get_close_matches(word, list(known), n=1)
    return f"; did you mean {prefix}{found[0]}?" if found else ""


def near_path(name: str) -> str:
    """The end of a message: the path that is there and most like `name`, or nothing."""
    found = _nearest(Path(name))
    return f"; did you mean {found}?" if found else ""


def _nearest(path: Path) -> Path | None:
    parent = path.parent if path.parent.is_dir() else _nearest(path.parent)
    if parent is None or not parent.is_dir():
        return None
    found = get_close_matches(path.name, [entry.name for entry in parent.iterdir()], n=1)
    return parent / found[0] if found else None


# -- what options name ------------------------------------------------------------------------------------------------


def check_file(option: str, name: str | None, expected: str):
    """Raises `FileNotFoundError` if the file of an option does not exist; `expected` says what it should be."""
    if name is not None and not Path(name).is_file():
        problem = "is a folder" if Path(name).is_dir() else "does not exist"
        raise FileNotFoundError(f"{option} {name} {problem}: expected {expected}{near_path(name)}")


def check_folder(option: str, name: str | None, expected: str):
    """Raises `FileNotFoundError` if the folder of an option does not exist."""
    if name is not None and not Path(name).is_dir():
        problem = "is a file" if Path(name).is_file() else "does not exist"
        raise FileNotFoundError(f"{option} {name} {problem}: expected {expected}{near_path(name)}")


def check_output(name: str, option: str = "--output_dir"):
    """Raises `FileExistsError` if the folder to write to is a file, or in one."""
    for path in (Path(name), *Path(name).parents):
        if path.exists() and not path.is_dir():
            raise FileExistsError(f"{option} {name}: {path} is a file; name a folder")


def check_model(
    option: str,
    name: str | None,
    kind: str = "a trained checkpoint",
    may_be_file: bool = False,
    otherwise: str = "",
):
    """
    Looks for the model that an option names, before anything is read.

    Args:
        option (`str`): Such as `--model`.
        name (`str`, *optional*): Folder or Hub id.
        kind (`str`, defaults to `"a trained checkpoint"`): What is expected.
        may_be_file (`bool`, defaults to `False`):
            Whether LAION's checkpoints are taken too: a file, or `repo_id/file.pt` on the Hub.
        otherwise (`str`, defaults to `""`): Another way out, at the end of the message.

    Raises:
        `FileNotFoundError`: when there is no such folder and no such model on the Hub.
        `ValueError`: when the folder holds no weights, as that of this repository, or a file is not taken.
    """
    if name is None or (may_be_file and (name.endswith(".pt") or Path(name).is_file())):
        return
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{option} {name} has no config.json: expected {kind}{_checkpoint_in(folder)}")
        if not any(path for pattern in WEIGHTS for path in folder.glob(pattern)):
            if (folder / "train.py").is_file():
                raise ValueError(f"{option} {name} is the code, without weights: give {kind}, such as outputs/demo")
            raise ValueError(f"{option} {name} holds a configuration but no weights: give {kind}")
        return
    if folder.is_file():
        raise ValueError(f"{option} {name} is a file: expected the folder or the Hub id of {kind}")
    near = near_path(name) + otherwise
    if not _may_be_hub_id(name):
        raise FileNotFoundError(f"{option} {name}: no such folder, and not an id on the Hub (owner/name){near}")
    problem = f"the Hub has no model of that name{near}"
    try:
        found = isinstance(try_to_load_from_cache(name, "config.json"), str) or file_exists(name, "config.json")
    except GatedRepoError:
        return  # whoever loads it says what to do
    except Exception as error:  # offline: an error of the HTTP library, and which one depends on huggingface_hub
        found, problem = False, f"the Hub cannot be reached ({_first_line(error)}){near}"
    if not found:
        raise FileNotFoundError(f"{option} {name}: no such folder, and {problem}")


def check_dataset(option: str, name: str | None):
    """Raises `FileNotFoundError` if an option names no file, no folder and no dataset on the Hub."""
    if name is None or Path(name).exists():
        return
    missing = f"{option} {name} does not exist: expected a corpus's folder or file, or the id of a Hub dataset"
    if not _may_be_hub_id(name) or name.lower().endswith(TABLES):
        raise FileNotFoundError(missing + near_path(name))
    try:
        found, problem = repo_exists(name, repo_type="dataset"), ""
    except Exception as error:  # offline: see `check_model`
        found, problem = _is_cached_dataset(name), f"; the Hub cannot be reached ({_first_line(error)})"
    if not found:
        raise FileNotFoundError(missing + problem + near_path(name))


def _is_cached_dataset(name: str) -> bool:
    import datasets

    folders = (Path(HF_HUB_CACHE, f"datasets--{name.replace('/', '--')}"), name.replace("/", "___"))
    return any(Path(datasets.config.HF_DATASETS_CACHE, folder).is_dir() for folder in folders)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _may_be_hub_id(name: str) -> bool:
    return HUB_ID.fullmatch(name) is not None


def _checkpoint_in(folder: Path) -> str:
    """The end of a message: a checkpoint in one of the subfolders, or nothing."""
    found = sorted(path.parent for path in folder.glob("*/config.json"))
    return f"; did you mean {found[0]}?" if found else ""


# -- options that scripts share ---------------------------------------------------------------------------------------


def available_cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(kw_only=True)
class ProcessArguments:
    """Options of every script that reads audio files."""

    group = "data"
    num_proc: int = field(
        default_factory=available_cpus, metadata={"help": "Processes that read audio files; one per CPU by default."}
    )

    def __post_init__(self):
        self.check_least("num_proc", 1)

    def check_least(self, name: str, least: int):
        """`ValueError` where the option is less than `least`."""
        if getattr(self, name) < least:
            raise ValueError(f"--{name} {getattr(self, name)}: expected {least} or more")


@dataclass(kw_only=True)
class CorpusArguments(ProcessArguments):
    """Options of every script that reads a corpus, beside its own `--dataset`."""

    group = "data"
    caption_column: str = field(
        default="caption",
        metadata={
            "help": "Column of the caption, or of a list of captions, of which training and datastore take the first."
        },
    )
    id_column: str = field(default="id", metadata={"help": "Column of unique ids; file names if there is none."})
    max_skipped: float = field(default=0.01, metadata={"help": "Largest share of unusable rows that is not an error."})
    cache_dir: str | None = field(
        default=None, metadata={"help": "Folder of the log-mel cache; that of the datasets library if unset."}
    )
    cache_dtype: Literal["float16", "float32"] = field(
        default="float16", metadata={"help": "Type of the cached log-mels; float32 takes twice the space."}
    )


@dataclass(kw_only=True)
class InferenceArguments(CorpusArguments):
    """Options of the scripts that run a trained model over a corpus."""

    group = "data"
    batch_size: int = field(default=32, metadata={"help": "Clips per forward pass and process."})

    def __post_init__(self):
        super().__post_init__()
        self.check_least("batch_size", 1)


@dataclass(kw_only=True)
class DuplicateArguments:
    """Options of the scripts that look for near-duplicate captions."""

    group = "near-duplicates"
    ngram: int = field(default=5, metadata={"help": "Words of the n-grams by which captions are compared."})
    threshold: float = field(
        default=0.8, metadata={"help": "Captions whose Jaccard similarity is larger are near-duplicates."}
    )


@dataclass(kw_only=True)
class SearchArguments:
    """Options of the scripts that make a datastore."""

    group = "retrieval"
    string_factory: str = field(
        default="Flat", metadata={"help": "FAISS index of the datastore. Flat is exact and needs no training."}
    )
    search_parameters: str | None = field(
        default=None,
        metadata={"help": "Parameters of that index: nprobe=32, efSearch=64; FAISS's own (1, 16) if unset."},
    )


@dataclass(kw_only=True)
class HubArguments:
    """Options of the scripts that push to the Hub."""

    group = "Hub"
    hub_model_id: str | None = field(default=None, metadata={"help": "Repository on the Hub: owner/name."})
    hub_private_repo: bool = field(default=False, metadata={"help": "Make the repository private if it is new."})
