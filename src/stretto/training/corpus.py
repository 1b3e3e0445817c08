"""Reading the training corpora: JSON Lines files, plain or xz-compressed.

A line is an object with ``text``, or with ``prompt`` and ``completion`` (joined as they stand).
A file's name says what it is: ``<corpus>.<split>.jsonl[.xz]``, for example ``stories.train.jsonl.xz``.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from pathlib import Path

from stretto.tokens.tokenizer import Tokenizer


def read_documents(path: Path) -> list[str]:
    """Return the documents of one file in the order they stand in.

    Raises ``ValueError`` with the line number when a line is no JSON or holds neither ``text`` nor a prompt.
    """
    opener = lzma.open if path.suffix == ".xz" else open
    documents = []
    with opener(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
            except ValueError as error:
                told = "expected JSON Lines, objects with a text or a prompt"
                raise ValueError(f"{path}, line {number} is not JSON ({error}); {told}") from None
            if "text" in record:
                documents.append(record["text"])
            elif "prompt" in record:
                documents.append(record["prompt"] + record.get("completion", ""))
            else:
                raise ValueError(f"{path}, line {number}: expected a key 'text' or 'prompt', found {sorted(record)}")
    return documents


def find_corpora(data: Path, split: str) -> dict[str, Path]:
    """Map corpus name to its file of ``split`` anywhere under ``data``.

    Raises ``FileNotFoundError`` when there is none.
    """
    files = {p.name.split(".")[0]: p for p in sorted(data.rglob(f"*.{split}.jsonl*"))}
    if not files:
        raise FileNotFoundError(f"no file named *.{split}.jsonl or *.{split}.jsonl.xz below {data}")
    return files


def document_hash(text: str) -> str:
    """Return the first 16 hexadecimal digits of the text's SHA-256, the document's identity."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def load_training_documents(data: Path) -> dict[str, list[str]]:
    """Return the train documents by corpus, without any that also stands in ``valid`` or ``test``."""
    held_out = {
        document_hash(text)
        for split in ("valid", "test")
        for path in find_corpora(data, split).values()
        for text in read_documents(path)
    }
    return {
        name: [text for text in read_documents(path) if document_hash(text) not in held_out]
        for name, path in find_corpora(data, "train").items()
    }


def begun(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the token ids of a document, begun with BOS where the tokenizer has one."""
    ids = tokenizer.encode(text)
    return ids if tokenizer.bos is None or ids[:1] == [tokenizer.bos] else [tokenizer.bos, *ids]
