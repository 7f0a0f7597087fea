"""BibTeX of the architectures that were compared: for those whose source the registry names, and of it alone.

The registry has authors, year and arXiv number (`Architecture.paper`); titles and first authors' names are here. A
source without a known title is cited by its number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from hf_arch.core.registry import ARCHITECTURES
from hf_arch.report.latex import escape

ARXIV = re.compile(r"(?:(?P<authors>[^;,]*?) (?P<year>\d{4}), )?arXiv (?P<id>\d{4}\.\d{4,5})")
NAMED = re.compile(r"^(?P<authors>[^;,]+?) (?P<year>\d{4}), (?P<title>[^;]+)$")
OTHERS = " and others"
SOURCES: dict[str, tuple[str, str]] = {
    "1706.03762": ("Vaswani, Ashish and others", "Attention Is All You Need"),
    "2006.04768": ("Wang, Sinong and others", "Linformer: Self-Attention with Linear Complexity"),
    "2006.16236": (
        "Katharopoulos, Angelos and others",
        "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention",
    ),
    "2110.02488": ("Peng, Hao and others", "ABC: Attention with Bounded-memory Control"),
    "2206.11893": (
        "Gu, Albert and others",
        "On the Parameterization and Initialization of Diagonal State Space Models",
    ),
    "2302.13971": ("Touvron, Hugo and others", "LLaMA: Open and Efficient Foundation Language Models"),
    "2305.13245": (
        "Ainslie, Joshua and others",
        "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints",
    ),
    "2307.08621": ("Sun, Yutao and others", "Retentive Network: A Successor to Transformer for Large Language Models"),
    "2311.04823": ("Qin, Zhen and others", "Hierarchically Gated Recurrent Neural Network for Sequence Modeling"),
    "2312.00752": (
        "Gu, Albert and Dao, Tri",
        "Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
    ),
    "2312.06635": (
        "Yang, Songlin and others",
        "Gated Linear Attention Transformers with Hardware-Efficient Training",
    ),
    "2401.04088": ("Jiang, Albert Q. and others", "Mixtral of Experts"),
    "2402.18668": (
        "Arora, Simran and others",
        "Simple linear attention language models balance the recall-throughput tradeoff",
    ),
    "2402.19427": (
        "De, Soham and others",
        "Griffin: Mixing Gated Linear Recurrences with Local Attention for Efficient Language Models",
    ),
    "2403.19887": ("Lieber, Opher and others", "Jamba: A Hybrid Transformer-Mamba Language Model"),
    "2404.05892": (
        "Peng, Bo and others",
        "Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence",
    ),
    "2404.07904": ("Qin, Zhen and others", "HGRN2: Gated Linear RNNs with State Expansion"),
    "2405.04434": (
        "{DeepSeek-AI}",
        "DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model",
    ),
    "2405.05254": (
        "Sun, Yutao and others",
        "You Only Cache Once: Decoder-Decoder Architectures for Language Models",
    ),
    "2405.21022": (
        "Qin, Zhen and others",
        "You Only Scan Once: Efficient Multi-dimension Sequential Modeling with LightNet",
    ),
    "2405.21060": (
        "Dao, Tri and Gu, Albert",
        "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space Duality",
    ),
    "2406.06484": (
        "Yang, Songlin and others",
        "Parallelizing Linear Transformers with the Delta Rule over Sequence Length",
    ),
    "2406.07522": (
        "Ren, Liliang and others",
        "Samba: Simple Hybrid State Space Models for Efficient Unlimited Context Language Modeling",
    ),
    "2409.07146": ("Zhang, Yu and others", "Gated Slot Attention for Efficient Linear-Time Sequence Modeling"),
    "2410.05258": ("Ye, Tianzhu and others", "Differential Transformer"),
    "2410.06577": (
        "He, Zhihao and others",
        "Rodimus*: Breaking the Accuracy-Efficiency Trade-Off with Efficient Attentions",
    ),
    "2410.17980": (
        "Tan, Shawn and others",
        "Scaling Stick-Breaking Attention: An Efficient Implementation and In-depth Study",
    ),
    "2412.06464": ("Yang, Songlin and others", "Gated Delta Networks: Improving Mamba2 with Delta Rule"),
    "2502.10297": (
        "Siems, Julien and others",
        "DeltaProduct: Improving State-Tracking in Linear RNNs via Householder Products",
    ),
    "2502.11089": (
        "Yuan, Jingyang and others",
        "Native Sparse Attention: Hardware-Aligned and Natively Trainable Sparse Attention",
    ),
    "2502.13189": ("Lu, Enzhe and others", "MoBA: Mixture of Block Attention for Long-Context LLMs"),
    "2503.02130": ("Lin, Zhixuan and others", "Forgetting Transformer: Softmax Attention with a Forget Gate"),
    "2503.14456": ("Peng, Bo and others", 'RWKV-7 "Goose" with Expressive Dynamic State Evolution'),
    "2505.16381": (
        "Yang, Songlin and others",
        "PaTH Attention: Position Encoding via Accumulating Householder Transformations",
    ),
    "2506.02475": ("Hu, Jiaxi and others", "Comba: Improving Bilinear RNNs with Closed-loop Control"),
    "2506.04761": ("Guo, Han and others", "Log-Linear Attention"),
    "2506.05233": (
        "von Oswald, Johannes and others",
        "MesaNet: Sequence Modeling by Locally Optimal Test-Time Training",
    ),
    "2510.26692": ("{Kimi Team}", "Kimi Linear: An Expressive, Efficient Attention Architecture"),
    "2603.15569": (
        "Lahoti, Aakash and others",
        "Mamba-3: Improved Sequence Modeling using State Space Principles",
    ),
}
"""{arXiv number: (authors as BibTeX has them, title)}."""


@dataclass(frozen=True)
class Reference:
    """One source: its BibTeX key, authors and title as text, year, and arXiv number where it has one."""

    key: str
    authors: str
    title: str
    year: str
    arxiv: str | None

    def bibtex(self) -> str:
        """The entry; titles keep their capitals."""
        authors = self.authors if self.authors.startswith("{") else escape(self.authors)
        lines = [f"@misc{{{self.key}"]
        lines += [f"  author = {{{authors}}}"] if self.authors else []
        lines += [f"  title = {{{{{escape(self.title)}}}}}", f"  year = {{{self.year}}}"]
        if self.arxiv is not None:
            lines += [f"  eprint = {{{self.arxiv}}}", "  archiveprefix = {arXiv}"]
            lines += [f"  note = {{arXiv:{self.arxiv}}}"]
        return ",\n".join(lines) + "\n}\n"


def references(architectures: Iterable[str]) -> dict[str, list[Reference]]:
    """{architecture: its sources}, without those whose source the registry does not name."""
    found = {}
    for name in dict.fromkeys(architectures):
        if name in ARCHITECTURES and (sources := parse_source(ARCHITECTURES.get(name).paper)):
            found[name] = sources
    return found


def parse_source(paper: str) -> list[Reference]:
    """The references that a registry's `paper` names: `Yang et al. 2023, arXiv 2312.06635`, or authors, year, title."""
    found = []
    for match in ARXIV.finditer(paper):
        number = match["id"]
        named = re.sub(r"^components of | et al\.$", "", match["authors"] or "").strip()
        authors, title = SOURCES.get(number, (f"{{{named}}}{OTHERS}" if named else "", f"arXiv:{number}"))
        year = match["year"] or f"20{number[:2]}"
        found.append(Reference(f"arxiv{number.replace('.', '')}", authors, title, year, number))
    if not found and (named_source := NAMED.match(paper)):
        authors, year, title = named_source["authors"], named_source["year"], named_source["title"]
        surname = authors.removesuffix(" et al.")
        written = f"{{{escape(surname)}}}" + (OTHERS if surname != authors else "")
        key = re.sub(r"[^a-z0-9]", "", surname.lower().split()[0]) or "source"
        found.append(Reference(f"{key}{year}", written, title.strip(), year, None))
    return found


def bibliography(found: dict[str, list[Reference]]) -> str:
    """The .bib file of these sources, each once."""
    entries = {reference.key: reference.bibtex() for sources in found.values() for reference in sources}
    return "\n".join(entries[key] for key in sorted(entries))
