"""Computes BLEU, METEOR 1.5, ROUGE-L and CIDEr-D as the COCO caption code does, for `evaluate.load`."""

import re
import shutil
import signal
import subprocess
import unicodedata
from importlib.resources import files

import datasets
import evaluate
import numpy as np

DESCRIPTION = """
BLEU-1 to BLEU-4, METEOR 1.5, ROUGE-L and CIDEr-D as the COCO caption evaluation code computes them, x 100 (a perfect
CIDEr-D is 1000). Captions are lower-cased, Unicode punctuation and symbols are deleted (the rule `music` keeps those of
C#, R&B, 4/4 and don't), and white space is collapsed. NLTK's word tokenizer then splits them into words; by the rule
`paper` these are the words of the Java PTB tokenizer of the original code.

Score all captions of a split in one call: CIDEr-D weights words by the references of the call, and BLEU and METEOR are
ratios of sums over the call.
"""
INPUTS = """
Args:
    predictions (`list[str]`):
        A caption per item. A caption without words scores 0.
    references (`list[str]` or `list[list[str]]`):
        A caption or a list of captions per item, at least one of them with words.
    normalization (`str`, defaults to `"paper"`):
        Rule of the captions, the model's own: `"paper"` or `"music"`.
    per_item (`bool`, defaults to `False`):
        Whether to also return the scores of each item.
    meteor (`bool`, defaults to `True`):
        Whether to compute METEOR. It needs Java and about 1 GB of memory; the other metrics need neither.
    meteor_timeout (`float`, defaults to 600):
        Seconds to wait for METEOR.
    bootstrap (`int`, defaults to 0):
        Number of resamples of the items for 95 % percentile intervals; 0 for none.
    seed (`int`, defaults to 0):
        Seed of the resamples. Calls with the same seed and number of items draw the same items, so that differences
        between the `resamples` of two systems are paired.

Returns:
    `dict`:

    - `bleu_1`, `bleu_2`, `bleu_3`, `bleu_4`, `rouge_l`, `cider_d`, `meteor_1.5` (`float`): Scores x 100. `meteor_1.5`
      is `None` if it cannot be computed.
    - `unavailable` (`dict[str, str]`): Reason for each metric that is `None`; only if there is such a metric.
    - `per_item` (`dict[str, list[float]]`): Scores of each item. BLEU and METEOR overall are not their means.
    - `intervals` (`dict[str, list[float]]`): Low and high end for each metric.
    - `resamples` (`dict[str, list[float]]`): `bootstrap` scores for each metric. For CIDEr-D words keep the weights
      that they have over all items.

Raises:
    `ValueError`: If there are no items, if the references of an item have no words, or if no prediction has any.
"""
CITATION = """
@article{chen2015microsoft,
  title={Microsoft COCO Captions: Data Collection and Evaluation Server},
  author={Chen, Xinlei and Fang, Hao and Lin, Tsung-Yi and Vedantam, Ramakrishna and Gupta, Saurabh and Dollar, Piotr
  and Zitnick, C. Lawrence}, journal={arXiv:1504.00325},
  year={2015}
}
@inproceedings{denkowski2014meteor,
  title={Meteor Universal: Language Specific Translation Evaluation for Any Target Language},
  author={Denkowski, Michael and Lavie, Alon},
  booktitle={Proceedings of the Ninth Workshop on Statistical Machine Translation},
  year={2014}
}
"""
NORMALIZATIONS = ("paper", "music")
MUSICAL = "/&#♭'"  # kept by `music`, where each has a meaning
# Other characters that are typed for the same sign.
SPELLINGS = str.maketrans({**dict.fromkeys("`\u00b4\u2018\u2019\u02bc\u2032\uff07", "'"), "♯": "#"})
METEOR_STATISTICS = 23  # numbers per item that the jar returns


def normalize(caption: str, normalization: str = "paper") -> str:
    """Normalises as `normalize_caption` of `captions_rgmc.py`; a metric loaded by itself cannot import it."""
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization {normalization!r}: expected one of {', '.join(NORMALIZATIONS)}")
    letters = "".join(character for character in caption.lower() if not _is_invisible(character))
    letters = unicodedata.normalize("NFC", letters)
    kept = MUSICAL if normalization == "music" else ""
    if normalization == "music":
        letters = letters.translate(SPELLINGS)
        letters = "".join(" " if unicodedata.category(letter) == "Pd" else letter for letter in letters)
    letters = "".join(letter for letter in letters if letter in kept or unicodedata.category(letter)[0] not in "PS")
    letters = unicodedata.normalize("NFC", letters)
    if normalization == "music":
        letters = re.sub(r"(?<!\d)/|/(?!\d)", " ", letters)
        letters = re.sub(r"(?<!\w)[&']|[&'](?!\w)", "", letters)
        letters = re.sub(r"(?<=(?<!\S)[a-g])♭", "b", letters)
        letters = re.sub(r"(?<!(?<!\S)[a-g])#|♭", "", letters)
    return " ".join(unicodedata.normalize("NFC", letters).split())


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) == "Cf" or "\ufe00" <= character <= "\ufe0f"


class CaptionMetrics(evaluate.Metric):
    """Keeps the answers of METEOR's Java process, so that it is not asked about the same captions again."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._meteor_rows = {}

    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=[
                datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
                datasets.Features({"predictions": text, "references": text}),
            ],
        )

    def compute(self, *, predictions=None, references=None, **kwargs):
        """Computes the scores of captions."""
        if predictions is not None and len(predictions) == 0:
            raise ValueError("There are no captions to score")
        return super().compute(predictions=predictions, references=references, **kwargs)

    def _compute(
        self,
        predictions,
        references,
        normalization="paper",
        per_item=False,
        meteor=True,
        meteor_timeout=600,
        bootstrap=0,
        seed=0,
    ):
        found, truth = tokenize(predictions, references, normalization)
        statistics, unavailable = collect_statistics(found, truth), {}
        if meteor:
            try:
                statistics["meteor_1.5"] = self._meteor_statistics(found, truth, meteor_timeout)
            except RuntimeError as error:
                unavailable["meteor_1.5"] = str(error)
        results = {name: float(value) for name, value in corpus_scores(sum_items(statistics)).items()}
        if unavailable:
            results.update({"meteor_1.5": None, "unavailable": unavailable})
        if per_item:
            results["per_item"] = {name: values.tolist() for name, values in corpus_scores(statistics).items()}
        if bootstrap:
            n = len(found)
            draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=bootstrap)  # (samples, n)
            resampled = corpus_scores(sum_items(statistics, draws))
            results["resamples"] = {name: values.tolist() for name, values in resampled.items()}
            results["intervals"] = {
                name: np.percentile(values, [2.5, 97.5]).tolist() for name, values in resampled.items()
            }
        return results

    def prepare_meteor(self, predictions, references, normalization="paper", meteor_timeout=600):
        """
        Runs METEOR on the captions of several systems at once, because Java takes seconds to start and each `compute`
        would start it again.

        Args:
            predictions, references, normalization, meteor_timeout:
                As in `compute`, with the captions of all systems in one list and a reference for each.

        Raises:
            `RuntimeError`: If METEOR cannot be run, with the reason.
        """
        self._meteor_statistics(*tokenize(predictions, references, normalization), meteor_timeout)

    def _meteor_statistics(self, found, truth, timeout):
        pairs = [(caption, *captions) for caption, captions in zip(found, truth)]
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._meteor_rows]
        if new:
            rows = meteor_statistics([pair[0] for pair in new], [pair[1:] for pair in new], timeout)
            self._meteor_rows.update(zip(new, rows))
        return np.stack([self._meteor_rows[pair] for pair in pairs])


def tokenize(
    predictions: list[str], references: list[str] | list[list[str]], normalization: str = "paper"
) -> tuple[list[str], list[list[str]]]:
    """Splits captions into words, joined by single spaces."""
    from nltk.tokenize import NLTKWordTokenizer

    words = NLTKWordTokenizer()
    references = [[entry] if isinstance(entry, str) else entry for entry in references]

    def split(caption: str) -> str:
        return " ".join(words.tokenize(normalize(caption, normalization)))

    found = [split(caption) for caption in predictions]
    truth = [[split(caption) for caption in captions] for captions in references]
    for item, captions in enumerate(truth):
        if not any(captions):
            raise ValueError(f"Item {item} has no reference with a word in it: {references[item]!r}")
    if not any(found):
        raise ValueError(f"None of the {len(found)} predictions has a word in it; the first is {predictions[0]!r}")
    return found, truth


def collect_statistics(found: list[str], truth: list[list[str]]) -> dict[str, np.ndarray]:
    """
    Collects what the scores are computed from, per item: `bleu` `(n, 10)`, `rouge_l` and `cider_d` `(n, 1)`. Each adds
    up over items.
    """
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    scorer = BleuScorer(n=4)
    for caption, captions in zip(found, truth):
        scorer += (caption, captions)
    bleu = [
        [*item["correct"], *item["guess"], item["testlen"], closest(item["reflen"], item["testlen"])]
        for item in scorer.ctest
    ]
    by_item = [{item: [caption] for item, caption in enumerate(found)}, dict(enumerate(truth))]
    statistics = {"bleu": np.array(bleu, dtype=float)}
    for name, metric in (("rouge_l", Rouge()), ("cider_d", Cider())):
        _, scores = metric.compute_score(by_item[1], by_item[0])
        statistics[name] = np.asarray(scores, dtype=float)[:, None]
    return statistics


def closest(lengths: list[int], length: int) -> int:
    """Finds the length of a reference that is nearest to that of the prediction; the shorter one in a tie."""
    return min((abs(other - length), other) for other in lengths)[1]


def sum_items(statistics: dict[str, np.ndarray], draws: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """
    Sums over all items, to `(k,)`, or over each resample, to `(samples, k)`; `draws` `(samples, n)` counts how often
    each item was drawn.
    """
    n = len(next(iter(statistics.values())))
    weights = np.ones(n) if draws is None else draws.astype(float)
    # Sums of counts, and means of scores.
    return {name: weights @ values / (1 if values.shape[1] > 1 else n) for name, values in statistics.items()}


def corpus_scores(statistics: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Computes scores x 100 `(…)` from statistics `(…, k)` of items, of all items together, or of resamples."""
    bleu = bleu_scores(statistics["bleu"])
    scores = {f"bleu_{n}": bleu[..., n - 1] for n in range(1, 5)}
    scores.update({name: statistics[name][..., 0] for name in ("rouge_l", "cider_d")})
    if "meteor_1.5" in statistics:
        scores["meteor_1.5"] = meteor_scores(statistics["meteor_1.5"])
    return {name: 100 * values for name, values in scores.items()}


def bleu_scores(statistics: np.ndarray) -> np.ndarray:
    """Computes BLEU-1 to BLEU-4 `(…, 4)` from counts `(…, 10)`, with the COCO code's constants against 0 / 0."""
    small, tiny = 1e-9, 1e-15
    correct, guessed = statistics[..., :4], statistics[..., 4:8]
    precisions = np.cumprod((correct + tiny) / (guessed + small), axis=-1) ** (1 / np.arange(1, 5))
    ratio = (statistics[..., 8:9] + tiny) / (statistics[..., 9:] + small)
    return precisions * np.exp(np.minimum(0, 1 - 1 / ratio))  # the brevity penalty


def meteor_statistics(found: list[str], truth: list[list[str]], timeout: float) -> np.ndarray:
    """
    Runs METEOR's jar and returns its counts for the best reference of each item, `(n, 23)`: 0 and 1 the words of
    prediction and reference; 2 and 3 the function words among them; 4 to 19, for each of four matchers, the matched
    content words of prediction and reference and their matched function words; 20 the chunks; 21 and 22 the matched
    words of prediction and reference.

    Raises:
        `RuntimeError`: If the jar cannot be run, with the reason.
    """
    jar = files("pycocoevalcap") / "meteor" / "meteor-1.5.jar"
    java = shutil.which("java")
    if java is None:
        raise RuntimeError("METEOR 1.5 needs Java, but there is no `java` on the PATH: install a JRE, 8 or later")
    # Numbers with a decimal point, and UTF-8, in any locale.
    locale = [f"-Duser.{name}{kind}={value}" for name, value in (("language", "en"), ("country", "US"))
              for kind in ("", ".format")]  # fmt: skip
    command = [java, *locale, "-Dfile.encoding=UTF-8", "-Xmx1G", "-jar", str(jar)]
    command += ["-", "-", "-stdio", "-l", "en", "-norm"]
    text = "".join(f"SCORE ||| {' ||| '.join(captions)} ||| {caption}\n" for caption, captions in zip(found, truth))
    try:
        done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"METEOR's Java process gave no answer within {timeout:g} s (`meteor_timeout`)") from None
    except OSError as error:
        raise RuntimeError(f"METEOR's Java process cannot be started: {error}") from error
    said = done.stderr.decode(errors="replace").strip().splitlines()
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise RuntimeError(f"METEOR's Java process was killed by {name}; it takes about 1 GB of memory")
    rows = [line.split() for line in done.stdout.decode(errors="replace").splitlines()]
    if done.returncode != 0 or len(rows) != len(found) or any(len(row) != METEOR_STATISTICS for row in rows):
        raise RuntimeError(
            f"METEOR's Java process ended with status {done.returncode} and {len(rows)} of {len(found)} lines"
            + (f"; it said: {' / '.join(said[-3:])}" if said else "")
        )
    statistics = np.array(rows, dtype=float)
    # A caption matched from end to end has no fragments, not one.
    whole = (statistics[:, [21, 22]] == statistics[:, [0, 1]]).all(axis=1) & (statistics[:, 20] == 1)
    statistics[whole, 20] = 0
    return statistics


def meteor_scores(statistics: np.ndarray) -> np.ndarray:
    """Computes METEOR 1.5 `(…)` from the jar's counts `(…, 23)`, for English (Denkowski and Lavie, 2014)."""
    alpha, beta, gamma, delta = 0.85, 0.2, 0.6, 0.75
    matchers = np.array([1, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase
    matches = statistics[..., 4:20].reshape(*statistics.shape[:-1], 4, 4)

    def share(side: int) -> np.ndarray:  # 0, of the prediction: precision; 1, of the reference: recall
        length, function_words = statistics[..., side], statistics[..., 2 + side]
        weighted = (delta * matches[..., side] + (1 - delta) * matches[..., 2 + side]) @ matchers
        return weighted / (delta * (length - function_words) + (1 - delta) * function_words)

    with np.errstate(divide="ignore", invalid="ignore"):
        fragmentation = statistics[..., 20] / statistics[..., 21:23].mean(axis=-1)
        mean = 1 / ((1 - alpha) / share(0) + alpha / share(1))
        return np.nan_to_num((1 - gamma * fragmentation**beta) * mean)
