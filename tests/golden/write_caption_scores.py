"""
Writes caption_scores.json: scores of these pairs by the COCO caption code itself, with its Java tokenizer and METEOR.

    python tests/golden/write_caption_scores.py
"""

import json
import unicodedata
from pathlib import Path

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

PAIRS = [
    ("a sad ballad of piano and strings", ["sad and lonely violin and piano"]),
    ("bright and cheerful ukulele pop", ["bright and cheerful ukulele pop"]),
    ("A Slow, Sad Ballad; played on (acoustic) guitar!", ["a slow sad ballad played on acoustic guitar"]),
    ("lo-fi hip-hop beat with a mid-range voice", ["a lo fi hip hop beat", "low fidelity hip-hop with vocals"]),
    ("it's a song you can't dance to", ["it is a song that cannot be danced to", "you cannot dance to this song"]),
    ("cannot stop dancing gonna dance all night", ["can not stop dancing wanna dance all night"]),
    ("the singers were singing loudly", ["a singer sings loud", "two voices shout"]),
    ("a quick and joyful melody", ["a fast and happy tune"]),
    ("drums drums drums drums drums", ["drums and bass with more drums"]),
    ("the strings the strings the strings swell", ["the strings swell"]),
    ("guitar", ["a distorted electric guitar plays a solo over a fast beat of drums", "guitar"]),
    ("piano", ["piano"]),
    ("", ["a solo for the harp"]),
    ("?!", ["a question without words"]),
    ("an orchestra", ["an orchestra of strings, brass and timpani plays a slow and solemn march for a film"]),
    ("an orchestra of strings, brass and timpani plays a slow and solemn march", ["an orchestra"]),
    ("música de cámara para dos violines", ["música de cámara para dos violines"]),
    ("café jazz “live” — très chic…", ["cafe jazz live, tres chic", "café jazz live très chic"]),
    ("techno at 128 bpm\nin a minor key", ["techno in a minor key at 128 BPM"]),
    ("bossa nova ||| with ||| soft drums", ["bossa nova with soft drums"]),
    ("strings electric an with song a rock guitar", ["a rock song with an electric guitar"]),
    ("epic trailer music 🎬 with choir", ["epic music for trailers with a choir 🎬", "", "a choir sings"]),
    ("ragtime & stride, 1920's style", ["ragtime and stride piano in the style of the 1920s"]),
    ("an unrelated thing", ["warm pads under a distant trumpet"]),
]


def normalize(caption: str) -> str:
    kept = "".join(character for character in caption.lower() if unicodedata.category(character)[0] not in "PS")
    return " ".join(kept.split())


if __name__ == "__main__":
    tokenizer = PTBTokenizer()
    truth = {item: [{"caption": normalize(text)} for text in texts] for item, (_, texts) in enumerate(PAIRS)}
    found = {item: [{"caption": normalize(text)}] for item, (text, _) in enumerate(PAIRS)}
    truth, found = tokenizer.tokenize(truth), tokenizer.tokenize(found)
    bleu, bleu_items = Bleu(4).compute_score(truth, found, verbose=0)
    scores = {f"bleu_{n}": (bleu[n - 1], bleu_items[n - 1]) for n in range(1, 5)}
    for name, metric in (("rouge_l", Rouge()), ("cider_d", Cider()), ("meteor_1.5", Meteor())):
        value, items = metric.compute_score(truth, found)
        scores[name] = (float(value), [float(item) for item in items])
    written = {
        "about": "pycocoevalcap 1.2: PTBTokenizer of the normalised captions, Bleu, Rouge, Cider and Meteor; not x 100",
        "pairs": [{"prediction": text, "references": texts} for text, texts in PAIRS],
        "corpus": {name: value for name, (value, _) in scores.items()},
        "per_item": {name: items for name, (_, items) in scores.items()},
    }
    path = Path(__file__).with_name("caption_scores.json")
    path.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
