# PYTHON_ARGCOMPLETE_OK
"""Report retrieval metrics of runs: recall@K, median and mean rank, image to text and text to image.

python eval.py                                       the newest run on its test split
python eval.py RUN RUN --split val                   several runs in one table
python eval.py 'runs/*' --against vse0 --paper       one row for all seeds, tested, and the papers'
python eval.py RUN --correction nnn                  the same with scores corrected by a bank of training data
python eval.py RUN --data data/OTHER                 on another dataset than that of training
python eval.py 'runs/*' --ensemble seed              a row of rows together, by the mean of their scores
python eval.py RUN --folds 5 --format latex          averaged over five folds, ready to paste
python eval.py 'runs/*' --plots DIR --report A.html  the same with figures, and as one HTML file
python eval.py 'runs/*' --judgements FLICKR8K_TEXT   with how far scores agree with people's judgements

Models of others (docs/EVALUATION.md): their scores, their embeddings, or their TREC runs, beside runs or alone.

python eval.py --scores clip.npy --pairs pairs.csv                        images x captions, and what is true
python eval.py --embeddings images.npy captions.npy --pairs pairs.csv     a row for each --embeddings
python eval.py RUN --embeddings images.npy captions.npy --against RUN     rows in the order of the run's split

R@K is a hit: a true item stands among the first K. recall@K (--metrics recall) is the share of the true ones that do.
Ties count against the model everywhere: what scores as much as a true item stands before it.

Runs that differ by seed alone make one row: mean ± standard deviation over seeds, and a 95 % bootstrap interval of rsum
that draws images with all their captions.
"""

import argparse
from pathlib import Path

from script import complete, folders_with, one_sentence, run_script
from settings import known_recipes
from utils import be_quiet

CORRECTIONS = ("inverted_softmax", "qb_norm", "nnn", "db_norm", "sinkhorn")


def main() -> None:
    args = vars(arguments())
    if args.pop("quiet"):
        be_quiet()
    if onnx := args.pop("onnx"):
        from evaluation.export import export

        print(export(args["run"], args["runs"], onnx))
        return
    from evaluation.measure import EvalOptions, evaluate  # heavy: --help needs none of it

    print(evaluate(EvalOptions(**args)))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run",
        nargs="*",
        metavar="RUN",
        help="run folders, their names, patterns, or hub:USER/NAME; default: the newest",
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="ROOT", help="where runs are looked for")
    data = "the prepared folder, if it has moved since training, or another with features of the same backbones"
    parser.add_argument("--data", type=Path, metavar="DIR", help=data)
    parser.add_argument("--split", choices=("train", "val", "test"), default="test")
    matrix = "scores of another model, images x captions (.npy .npz .h5 .safetensors), or its two TREC runs"
    parser.add_argument("--scores", nargs="+", default=[], metavar="[NAME=]FILE", help=matrix)
    parser.add_argument(
        "--embeddings",
        nargs=2,
        action="append",
        default=[],
        metavar=("[NAME=]IMAGES", "CAPTIONS"),
        help="embeddings of another model, a row for each image and each caption; again for another model",
    )
    parser.add_argument("--similarity", choices=("cosine", "dot", "order"), help="of --embeddings; default: cosine")
    pairs = "which captions belong to which images: CSV, TSV, JSON lines, .npy, TREC qrels of one or both directions"
    parser.add_argument("--pairs", nargs="+", type=Path, default=[], metavar="FILE", help=pairs)
    parser.add_argument("--folds", type=int, metavar="N", help="average over N equal, consecutive parts of the split")
    parser.add_argument(
        "--captions-per-image",
        type=int,
        metavar="N",
        help="keep the first N captions of every image, 0 for all; default: 5 for coco, all elsewhere",
    )
    besides = "besides R@K: recall (a share), ndcg (nDCG@10), map (mAP@R), rprecision"
    parser.add_argument(
        "--metrics", nargs="+", choices=("recall", "ndcg", "map", "rprecision"), default=[], help=besides
    )
    truths = "COCO's 5,000 test images with more true pairs, too: ECCV Caption, CxC (pip install eccv_caption)"
    parser.add_argument("--ground-truth", nargs="+", choices=("eccv", "cxc"), default=[], help=truths)
    parser.add_argument("--against", metavar="ROW", help="test every row's rsum against this row or run")
    corrections = f"{', '.join(CORRECTIONS)}: a row for each, scores corrected for hubs"
    parser.add_argument("--correction", nargs="+", default=[], metavar="NAME", help=corrections)
    banks = "what corrects: training data kept in the run (inductive), or the test queries themselves (transductive)"
    parser.add_argument("--bank", nargs="+", choices=("train", "test"), default=["train"], help=banks)
    parser.add_argument(
        "--bank-embeddings",
        nargs=2,
        type=Path,
        action="append",
        default=[],
        metavar=("IMAGES", "CAPTIONS"),
        help="embeddings of training data by the model of --embeddings, for inductive corrections",
    )
    together = "a row of all runs together, or of those of each seed together, ranked by the mean of their scores"
    parser.add_argument("--ensemble", choices=("all", "seed"), default="", help=together)
    parser.add_argument("--paper", action="store_true", help="add what was published for the dataset and protocol")
    parser.add_argument(
        "--judgements", type=Path, metavar="DIR", help="Flickr8k's folder of human judgements: add Kendall's τ to them"
    )
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw the comparison into PNG files of this folder")
    parser.add_argument("--logs", type=Path, metavar="FILE.csv", help="write the epochs of all runs, a line each")
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="write all of it into one HTML file")
    trec = "write TREC runs of both directions, and their qrels, into this folder"
    parser.add_argument("--trec", type=Path, metavar="DIR", help=trec)
    share = "write the run to this folder, or push it to hub:USER/NAME: half precision, a card with its table"
    parser.add_argument("--share", type=Path, metavar="DIR|hub:USER/NAME", help=share)
    onnx = "write the run's branches to this folder as ONNX, and how their inputs are made; measures nothing"
    parser.add_argument("--onnx", type=Path, metavar="DIR", help=onnx)
    parser.add_argument("--format", choices=("text", "markdown", "latex", "csv", "json"), default="text")
    parser.add_argument("--quiet", action="store_true", help="say only warnings, errors and the result")
    complete(
        parser,
        run=lambda args: [*folders_with("recipe.toml", args.runs), *known_recipes()],
        against=lambda args: [*folders_with("recipe.toml", args.runs), *known_recipes()],
        correction=lambda args: CORRECTIONS,
    )
    return one_sentence(parser).parse_args()


if __name__ == "__main__":
    run_script(main)
