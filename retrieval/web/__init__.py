"""The page over a search index: server, answers, images in and out, and the page's plain files."""

from utils import BadInput


def check_packages() -> None:
    """Raises BadInput where a package is missing that the page alone needs."""
    try:
        import jinja2
        import python_multipart
        import starlette
        import uvicorn

        _ = jinja2, python_multipart, starlette, uvicorn
    except ImportError as error:
        raise BadInput(f"{error.name}: the page needs this package; pip install -r requirements-all.txt") from None
