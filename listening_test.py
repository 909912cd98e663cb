"""
The human evaluation of the paper (section 7.1): raters hear a song and compare the captions of two systems.

    python listening_test.py power --songs 31
    python listening_test.py make --predictions ours=a.jsonl theirs=b.jsonl --dataset data/demo --output_dir my_test
    python listening_test.py analyse answers/*.json --key my_test/key.json --output_dir my_test/results

`power` says how many songs are needed. `make` writes a page that raters open from disk, with the sound in it, and a key
that they must not see. `analyse` turns the files that they save into the paper's Table 2, with intervals, tests and
agreement. `python listening_test.py make --help` lists the options of one.
"""

import csv
import json
import shlex
import sys
from dataclasses import asdict, dataclass, field, fields
from datetime import date
from pathlib import Path

from clips.options import check_dataset, check_file, check_output, choose, parse, user_errors
from listening.design import Study, Variant, make_study
from listening.power import MOST_SONGS, power_of, preference_needed, songs_needed


@dataclass
class MakeArguments:
    group = "captions and songs"
    predictions: list[str] = field(
        metadata={
            "help": 'Two systems or more, each as name=file.jsonl with lines {"id": …, "prediction": …}; '
            "name=predictions.jsonl:system takes another system of an evaluation."
        }
    )
    dataset: str = field(metadata={"help": "Corpus of the songs, as for eval.py."})
    output_dir: str = field(metadata={"help": "Folder of the page, the key, the raters' codes and the data sheet."})
    split: str = field(default="test", metadata={"help": "Split of the songs; all for a corpus without splits."})
    caption_column: str = field(default="caption", metadata={"help": "Column of the caption, or of a list of them."})
    id_column: str = field(default="id", metadata={"help": "Column of unique ids; file names if there is none."})
    songs: int = field(default=31, metadata={"help": "Songs to draw; as many as the paper by default."})
    variant: Variant = field(
        default="hearing",
        metadata={
            "help": "hearing: raters hear the sound. picture and text are for deaf and hard-of-hearing raters, with a "
            "picture of the sound or without; they judge which caption is more useful."
        },
    )
    raters: int = field(default=3, metadata={"help": "Raters in all."})
    raters_per_song: int = field(default=3, metadata={"help": "Raters of each comparison."})
    checks: int = field(default=4, metadata={"help": "Attention checks of each rater."})
    repeats: int = field(default=4, metadata={"help": "Comparisons that each rater makes twice."})
    max_failed_checks: int = field(default=1, metadata={"help": "Attention checks that a rater may fail."})
    min_answered: float = field(default=0.5, metadata={"help": "Share of the trials that a rater has to answer."})
    contact: str = field(default="the person who invited you", metadata={"help": "Whom raters can ask."})
    consent: str | None = field(
        default=None, metadata={"help": "Text file of what raters agree to, in place of the page's own text."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of songs, raters, orders and sides."})

    def __post_init__(self):
        least = {"songs": 1, "raters_per_song": 1, "checks": 0, "repeats": 0, "max_failed_checks": 0, "seed": 0}
        for name, expected in least.items():
            if getattr(self, name) < expected:
                raise ValueError(f"--{name} {getattr(self, name)}: expected {expected} or more")
        if self.raters < self.raters_per_song:
            raise ValueError(f"--raters {self.raters}: expected --raters_per_song {self.raters_per_song} or more")
        if len(self.predictions) < 2:
            raise ValueError(f"--predictions {' '.join(self.predictions)}: expected two systems or more")
        if not 0 <= self.min_answered <= 1:
            raise ValueError(f"--min_answered {self.min_answered:g}: expected a share from 0 to 1")


@dataclass
class AnalyseArguments:
    group = "answers and report"
    key: str = field(metadata={"help": "key.json of the test."})
    output_dir: str = field(metadata={"help": "Folder of report.md, report.html, results.json and votes.csv."})
    answers: list[str] = field(default_factory=list, metadata={"help": "Files that raters saved, .json or .csv."})
    bootstrap: int = field(default=1000, metadata={"help": "Resamples of the songs for the 95 %% intervals."})
    seed: int = field(default=0, metadata={"help": "Seed of the resamples."})

    def __post_init__(self):
        if not self.answers:
            raise ValueError("no answers: name the files that raters saved, as in analyse answers/*.json")
        if self.bootstrap < 1:
            raise ValueError(f"--bootstrap {self.bootstrap}: expected 1 or more")


@dataclass
class PowerArguments:
    group = "power"
    songs: int = field(default=31, metadata={"help": "Songs of the test, to see what it can find."})
    preference: list[float] = field(
        default_factory=lambda: [0.6, 0.65, 0.7, 0.75, 0.8],
        metadata={"help": "Shares of the decided songs that the better system wins."},
    )
    power: float = field(default=0.8, metadata={"help": "How probable it has to be that the preference is found."})
    alpha: float = field(default=0.05, metadata={"help": "Level of the two-sided sign test."})
    undecided: float = field(default=0.0, metadata={"help": "Share of the songs without a winner."})

    def __post_init__(self):
        if self.songs < 1:
            raise ValueError(f"--songs {self.songs}: expected 1 or more")
        for share in self.preference:
            if not 0.5 < share <= 1:
                raise ValueError(f"--preference {share:g}: expected a share above 0.5, up to 1")
        for name in ("power", "alpha"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name):g}: expected a number between 0 and 1")
        if not 0 <= self.undecided < 1:
            raise ValueError(f"--undecided {self.undecided:g}: expected a share from 0 to below 1")


def make(args: MakeArguments) -> Study:
    """Writes the page, the key, the codes of the raters and the data sheet to --output_dir."""
    from audio_rgmc import load_audio
    from listening.data_sheet import write_data_sheet
    from listening.inputs import read_material
    from listening.page import write_page

    # 1. The captions and the design
    output_dir = Path(args.output_dir)
    check_output(args.output_dir)
    check_dataset("--dataset", args.dataset)
    check_file("--consent", args.consent, "a text file")
    if (output_dir / "key.json").exists():
        raise FileExistsError(
            f"--output_dir {args.output_dir} holds a test (key.json), whose answers only its own key can read: "
            "name another folder"
        )
    columns = (args.caption_column, args.id_column)
    material = read_material(args.predictions, args.dataset, args.split, *columns)
    study = make_study(
        material.captions,
        material.gold,
        variant=args.variant,
        songs=args.songs,
        raters=args.raters,
        raters_per_song=args.raters_per_song,
        checks=args.checks,
        repeats=args.repeats,
        max_failed_checks=args.max_failed_checks,
        min_answered=args.min_answered,
        seed=args.seed,
        facts={
            "Made by": command("make", args),
            "Made on": date.today().isoformat(),
            "Captions normalised by the rule": material.normalization,
        },
    )

    # 2. The files
    output_dir.mkdir(parents=True, exist_ok=True)
    page = output_dir / "listening_test.html"
    consent = Path(args.consent).read_text(encoding="utf-8") if args.consent else None
    write_page(page, study, lambda song: load_audio(material.audio[song]), args.contact, consent)
    with open(output_dir / "raters.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["code", "page"], *([code, f"{page.name}#{code}"] for code in study.raters)])
    write_data_sheet(output_dir / "data_sheet.md", study)
    text = json.dumps(study.to_dict(), indent=1, ensure_ascii=False)
    (output_dir / "key.json").write_text(text + "\n", encoding="utf-8")
    trials = ", ".join(sorted({str(len(trials)) for trials in study.raters.values()}))
    print(f"{page} ({page.stat().st_size / 1e6:.1f} MB): {len(study.songs)} songs, {trials} trials for each rater")
    print(f"Give each rater the page and one code: {', '.join(study.raters)}")
    print(f"Keep {output_dir / 'key.json'} from them, and fill in {output_dir / 'data_sheet.md'} before the test")
    return study


def analyse(args: AnalyseArguments):
    """Writes report.md, report.html, results.json and votes.csv to --output_dir, and prints the tables."""
    from listening.analysis import analyse as analyse_votes
    from listening.answers import Vote, collect_votes, judge_raters, read_answers
    from listening.report import format_results, write_report

    check_file("--key", args.key, "the key.json of a test")
    check_output(args.output_dir)
    for file in args.answers:
        check_file("answers", file, "a file that a rater saved")
    try:
        study = Study.from_dict(json.loads(Path(args.key).read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"--key {args.key} is not the key.json of a test ({type(error).__name__}: {error})") from error
    answers = read_answers(args.answers, study)
    raters = judge_raters(answers, study)
    votes = collect_votes(answers, study, raters)
    results = analyse_votes(study, raters, votes, args.bootstrap, args.seed)

    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_report(output_dir, results, command("analyse", args))
    text = json.dumps(asdict(results), indent=2, ensure_ascii=False)
    (output_dir / "results.json").write_text(text + "\n", encoding="utf-8")
    with open(output_dir / "votes.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [column.name for column in fields(Vote)])
        writer.writeheader()
        writer.writerows(map(asdict, votes))
    print(format_results(results))
    print(f"\n{output_dir / 'report.html'} has the intervals")


def power(args: PowerArguments):
    """Prints how many songs each preference needs, and what so many songs can find."""
    rest = (args.alpha, args.undecided)
    undecided = f", {100 * args.undecided:g} % of the songs undecided" if args.undecided else ""
    print(f"Two-sided sign test of the songs at {100 * args.alpha:g} %, power {100 * args.power:g} %{undecided}")
    print(f"Preference  Songs needed  Power of {args.songs} songs")
    for share in args.preference:
        needed = songs_needed(share, args.power, *rest)
        words = "-".join(map(str, dict.fromkeys(needed))) if needed else f"over {MOST_SONGS}"
        odds = f"{100 * share:g}/{100 * (1 - share):g}"
        print(f"{odds:10}  {words:12}  {100 * power_of(args.songs, share, *rest):.0f} %")
    print("a-b: a songs are the fewest that reach it, and from b songs on all do")
    found = preference_needed(args.songs, args.power, *rest)
    reached = f"from a preference of {100 * found:.0f}/{100 * (1 - found):.0f} on" if found else "for no preference"
    print(f"{args.songs} songs reach a power of {100 * args.power:g} % {reached}")


def command(name: str, args: MakeArguments | AnalyseArguments) -> str:
    """The command that does this again."""
    words = ["python", "listening_test.py", name]
    for option in fields(args):
        value = getattr(args, option.name)
        values = [str(each) for each in value] if isinstance(value, list) else [str(value)]
        if option.name == "answers":
            words += values
        elif value != option.default:
            words += [f"--{option.name}", *values]
    return shlex.join(words)


COMMANDS = {"make": (make, MakeArguments), "analyse": (analyse, AnalyseArguments), "power": (power, PowerArguments)}


def main(argv: list[str]):
    usage = f"usage: listening_test.py {' | '.join(COMMANDS)} --option value ...\n{__doc__}"
    name = choose(argv, COMMANDS, "listening_test.py", usage)
    run, arguments = COMMANDS[name]
    positional = "answers" if name == "analyse" else None
    (args,) = parse(arguments, argv[1:], run.__doc__, prog=f"listening_test.py {name}", positional=positional)
    run(args)


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
