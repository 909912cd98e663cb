"""BLEU, METEOR 1.5, ROUGE-L and CIDEr-D of captions, as the COCO caption code computes them, for `evaluate.load`."""

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
CIDEr-D is 1000). Captions are lower-cased, Unicode punctuation and symbols are deleted (or, by the rule `music`, but
for those of C#, R&B, 4/4 and don't), white space is collapsed, and the words are those of NLTK's word tokenizer: by the
rule `paper` they are the same as those of the Java PTB tokenizer of the original code.

All captions of a split belong into one call: CIDEr-D weighs words by the references of the call, and BLEU and METEOR
are ratios of sums over it.
"""
INPUTS = """
Args:
    predictions: A caption per item. One without words scores 0.
    references: A caption, or a list of captions, per item, of which at least one has words.
    normalization (str, defaults to "paper"): Rule of the captions, that of the model: "paper" or "music".
    per_item (bool, defaults to False): Also return each item's scores.
    meteor (bool, defaults to True): METEOR needs Java and about 1 GB; the other metrics need neither.
    meteor_timeout (float, defaults to 600): Seconds after which METEOR is given up.
    bootstrap (int, defaults to 0): Resamples of the items for 95 % percentile intervals; 0 for none.
    seed (int, defaults to 0): Of the resamples. They are the same items for every call with this seed and as many
        items, so that differences of two systems' `resamples` are paired.

Returns:
    bleu_1, bleu_2, bleu_3, bleu_4, rouge_l, cider_d, meteor_1.5: floats, x 100. `meteor_1.5` is None where it cannot be
        computed.
    unavailable: {metric: reason}, where one is None.
    per_item: {metric: list of floats}; METEOR of all is not the mean of these, nor is BLEU.
    intervals: {metric: [low, high]}, and resamples: {metric: list of `bootstrap` floats}. CIDEr-D keeps the word
        weights of all items.

Raises:
    ValueError: without items, for an item whose references have no words, and where no prediction has any.
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
MUSICAL = "/&#♭'"  # what `music` keeps in its place
SPELLINGS = str.maketrans({**dict.fromkeys("`\u00b4\u2018\u2019\u02bc\u2032\uff07", "'"), "♯": "#"})  # of one character
METEOR_STATISTICS = 23  # numbers per item that the jar returns


def normalize(caption: str, normalization: str = "paper") -> str:
    """As `normalize_caption` of `processing_rgmc.py`; a metric that stands alone cannot import it."""
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
    """Keeps what METEOR's Java process says of a caption, so that the same pair is not asked for again."""

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
        """The scores of captions."""
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
        Asks METEOR for the captions of several systems at once. Java takes seconds to start, which each `compute` of
        one of them would spend again.

        Args: as those of `compute`; all systems' captions in one list, and as many references.

        Raises:
            `RuntimeError`: where METEOR cannot be had, with the reason.
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
    """Captions as words with single spaces between them."""
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
    What a score is computed from, per item: `bleu` `(n, 10)`, `rouge_l` and `cider_d` `(n, 1)`, each of which adds up
    over items.
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
    """Of the references' lengths the one nearest to the prediction's, the shorter one where two are."""
    return min((abs(other - length), other) for other in lengths)[1]


def sum_items(statistics: dict[str, np.ndarray], draws: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """
    Sums over the items `(k,)`, or over each resample `(samples, k)` of `draws`, which counts `(samples, n)` how often
    an item was drawn.
    """
    n = len(next(iter(statistics.values())))
    weights = np.ones(n) if draws is None else draws.astype(float)
    # Sums of counts, and means of scores.
    return {name: weights @ values / (1 if values.shape[1] > 1 else n) for name, values in statistics.items()}


def corpus_scores(statistics: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Scores x 100 `(…)` of statistics `(…, k)`: of items, of all items together, or of resamples."""
    bleu = bleu_scores(statistics["bleu"])
    scores = {f"bleu_{n}": bleu[..., n - 1] for n in range(1, 5)}
    scores.update({name: statistics[name][..., 0] for name in ("rouge_l", "cider_d")})
    if "meteor_1.5" in statistics:
        scores["meteor_1.5"] = meteor_scores(statistics["meteor_1.5"])
    return {name: 100 * values for name, values in scores.items()}


def bleu_scores(statistics: np.ndarray) -> np.ndarray:
    """BLEU-1 to BLEU-4 `(…, 4)` of the counts `(…, 10)`, with the constants by which the COCO code avoids 0 / 0."""
    small, tiny = 1e-9, 1e-15
    correct, guessed = statistics[..., :4], statistics[..., 4:8]
    precisions = np.cumprod((correct + tiny) / (guessed + small), axis=-1) ** (1 / np.arange(1, 5))
    ratio = (statistics[..., 8:9] + tiny) / (statistics[..., 9:] + small)
    return precisions * np.exp(np.minimum(0, 1 - 1 / ratio))  # the penalty of captions that are too short


def meteor_statistics(found: list[str], truth: list[list[str]], timeout: float) -> np.ndarray:
    """
    The jar's counts of each item's best reference `(n, 23)`: 0 and 1 words of prediction and reference, 2 and 3 how
    many of these are function words, 4 to 19 for each of four matchers the matched content words of prediction and
    reference and the matched function words of both, 20 chunks, 21 and 22 matched words of both.

    Raises:
        `RuntimeError`: where they cannot be had, with the reason.
    """
    jar = files("pycocoevalcap") / "meteor" / "meteor-1.5.jar"
    java = shutil.which("java")
    if java is None:
        raise RuntimeError("METEOR 1.5 needs Java and there is no `java` on the PATH: install a JRE, 8 or later")
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
    # A caption that is matched from end to end is not counted as one fragment.
    whole = (statistics[:, [21, 22]] == statistics[:, [0, 1]]).all(axis=1) & (statistics[:, 20] == 1)
    statistics[whole, 20] = 0
    return statistics


def meteor_scores(statistics: np.ndarray) -> np.ndarray:
    """METEOR 1.5 `(…)` of the jar's counts `(…, 23)`, with its parameters for English (Denkowski and Lavie, 2014)."""
    alpha, beta, gamma, delta = 0.85, 0.2, 0.6, 0.75
    matchers = np.array([1, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase
    matches = statistics[..., 4:20].reshape(*statistics.shape[:-1], 4, 4)

    def share(side: int) -> np.ndarray:  # of the prediction's words: precision; of the reference's: recall
        length, function_words = statistics[..., side], statistics[..., 2 + side]
        weighted = (delta * matches[..., side] + (1 - delta) * matches[..., 2 + side]) @ matchers
        return weighted / (delta * (length - function_words) + (1 - delta) * function_words)

    with np.errstate(divide="ignore", invalid="ignore"):
        fragmentation = statistics[..., 20] / statistics[..., 21:23].mean(axis=-1)
        mean = 1 / ((1 - alpha) / share(0) + alpha / share(1))
        return np.nan_to_num((1 - gamma * fragmentation**beta) * mean)
