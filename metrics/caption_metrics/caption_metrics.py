"""BLEU, ROUGE-L and CIDEr-D of captions, as the COCO caption code computes them, for `evaluate.load`."""

import unicodedata

import datasets
import evaluate

DESCRIPTION = """
BLEU-1 to BLEU-4, ROUGE-L and CIDEr-D as the COCO caption evaluation code computes them, x 100 (a perfect CIDEr-D is
1000). Captions are lower-cased, Unicode punctuation and symbols are deleted, white space is collapsed, and the words
are those of NLTK's word tokenizer: on such text they are the same as those of the Java PTB tokenizer of the original
code.
"""
INPUTS = """
Args:
    predictions: A caption per item.
    references: A caption, or a list of captions, per item.

Returns:
    bleu_1, bleu_2, bleu_3, bleu_4, rouge_l, cider_d: floats, x 100.
"""
CITATION = """
@article{chen2015microsoft,
  title={Microsoft COCO Captions: Data Collection and Evaluation Server},
  author={Chen, Xinlei and Fang, Hao and Lin, Tsung-Yi and Vedantam, Ramakrishna and Gupta, Saurabh and Dollar, Piotr
  and Zitnick, C. Lawrence}, journal={arXiv:1504.00325},
  year={2015}
}
"""


def tokenize(caption: str) -> str:
    from nltk.tokenize import NLTKWordTokenizer

    kept = "".join(character for character in caption.lower() if unicodedata.category(character)[0] not in "PS")
    return " ".join(NLTKWordTokenizer().tokenize(" ".join(kept.split())))


class CaptionMetrics(evaluate.Metric):
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

    def _compute(self, predictions, references):
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge

        references = [[entry] if isinstance(entry, str) else entry for entry in references]
        truth = {item: [tokenize(caption) for caption in captions] for item, captions in enumerate(references)}
        found = {item: [tokenize(caption)] for item, caption in enumerate(predictions)}
        bleu, _ = Bleu(4).compute_score(truth, found, verbose=0)
        scores = {f"bleu_{n}": value for n, value in enumerate(bleu, start=1)}
        scores["rouge_l"], _ = Rouge().compute_score(truth, found)
        scores["cider_d"], _ = Cider().compute_score(truth, found)
        return {name: 100 * float(value) for name, value in scores.items()}
