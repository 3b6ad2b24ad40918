"""The runs that ship in models/: what answers where no run of one's own is named."""

from pathlib import Path

from features.text.hub import find
from reading import read_json
from training.run import RESULT, Run, read_run_config, run_folders
from utils import BadInput, log

MODELS = Path(__file__).parents[1] / "models"


def shipped_run(models: Path = MODELS) -> Run:
    """Open the best run of those that ship, by rsum on val, of which all that it needs is installed; say which.

    Raises BadInput if there is none.
    """
    folders = [folder for folder in run_folders(models) if (folder / RESULT).is_file()]
    reasons = []
    for folder in sorted(folders, key=lambda folder: (-read_json(folder / RESULT, "")["rsum"], folder.name)):
        try:
            encoder = read_run_config(folder)[0].text.encoder
            if encoder:
                find(encoder)
            run = Run.open(folder)
        except BadInput as error:
            reasons.append(str(error))
            continue
        log(f"asks the model that ships as {folder.name}; `run` names another")
        return run
    why = f" ({'; '.join(reasons)})" if reasons else ""
    raise BadInput(f"{models}: holds no model that can answer here{why}; name a run of yours with `run`")
