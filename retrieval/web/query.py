"""What a request asks: a sentence, an image to be like, sentences to be less of, how many images; and its address.

q=SENTENCE&like=ID&upload=DIGEST&minus=SENTENCE&k=N; `minus` may come several times, `upload` names an image that was
sent before.
"""

from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qs, urlencode

from starlette.datastructures import UploadFile
from starlette.requests import Request

from utils import BadInput

DEFAULT_K, MAX_K = 20, 200  # images of one answer
MORE_K = 20  # images that "show more" adds
MAX_MINUS = 5  # sentences that are taken away


@dataclass(frozen=True)
class Query:
    """A question. like: an id of the index; upload: a digest of an image that was sent; asked: whether there is any."""

    sentence: str = ""
    like: str = ""
    upload: str = ""
    minus: tuple[str, ...] = ()
    k: int = DEFAULT_K
    asked: bool = True

    @classmethod
    def of(cls, request: Request) -> "Query":
        """Read the question of an address. Raises BadInput for a k that is none, two images, and too many sentences."""
        asked = any(parameters(request, name) for name in ("q", "like", "upload", "minus"))
        like, upload = id_of(request, "like"), text_of(request, "upload")
        if like and upload:
            raise BadInput("two images are to be alike; leave one of them out")
        minus = tuple(text for text in parameters(request, "minus") if text.strip())
        if len(minus) > MAX_MINUS:
            raise BadInput(f"{len(minus)} sentences are to be taken away; leave {MAX_MINUS} at most")
        return cls(text_of(request, "q"), like, upload, minus, k_of(request), asked)

    @property
    def only_sentence(self) -> bool:
        """Return whether a sentence asks alone, as calibrated probabilities need it."""
        return not (self.like or self.upload or self.minus)

    @property
    def only_image(self) -> bool:
        """Return whether an image asks alone."""
        return bool(self.like or self.upload) and not (self.sentence.strip() or self.minus)

    def without(self, text: str) -> "Query":
        """Return the question that takes one sentence less away.

        >>> Query("a dog", minus=("snow", "people")).without("snow").minus
        ('people',)
        """
        return replace(self, minus=tuple(other for other in self.minus if other != text))

    def address(self, path: str = "/", **changes: Any) -> str:
        """Return the address of the question. Any id goes through, half a surrogate pair (a name not in UTF-8) too.

        >>> Query(like="a b/c%.jpg", sentence="in snow", minus=("people",)).address(k=40)
        '/?q=in+snow&like=a+b%2Fc%25.jpg&minus=people&k=40'
        >>> Query(sentence="").address()
        '/'
        """
        query = replace(self, **changes)
        pairs = [("q", query.sentence), ("like", query.like), ("upload", query.upload)]
        pairs = [(name, value) for name, value in pairs if value] + [("minus", text) for text in query.minus]
        if not pairs:
            return path
        if query.k != DEFAULT_K:
            pairs.append(("k", str(query.k)))
        return f"{path}?{urlencode(pairs, encoding='utf-8', errors='surrogatepass')}"


def parameters(request: Request, name: str, errors: str = "replace") -> list[str]:
    """Return every value of a parameter of an address."""
    query = request.scope["query_string"].decode("latin-1")
    values = parse_qs(query, keep_blank_values=True, encoding="latin-1").get(name, [])
    return [value.encode("latin-1").decode("utf-8", errors) for value in values]


def text_of(request: Request, name: str) -> str:
    """Return the last value of a parameter; "" without it."""
    return ["", *parameters(request, name)][-1]


def id_of(request: Request, name: str) -> str:
    """Return an id as `Query.address` writes it: it need not be Unicode."""
    try:
        return ["", *parameters(request, name, "surrogatepass")][-1]
    except UnicodeDecodeError:
        return text_of(request, name)  # no id of the index


def k_of(request: Request) -> int:
    """Return how many images are asked for. Raises BadInput unless it is 1 to MAX_K."""
    text = text_of(request, "k") or str(DEFAULT_K)
    try:
        k = int(text)
    except ValueError:
        k = 0
    if not 1 <= k <= MAX_K:
        raise BadInput(f"k={text[:20]}: is no number of images; choose one from 1 to {MAX_K}")
    return k


async def body_of(request: Request) -> bytes:
    """Read the image that a request brings: its body, or the field `image` of a form."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return await request.body()
    async with request.form(max_files=1, max_fields=10) as form:
        image = form.get("image")
        if not isinstance(image, UploadFile):
            raise BadInput("no image came along; choose one, or send it as the field `image`")
        return await image.read()
