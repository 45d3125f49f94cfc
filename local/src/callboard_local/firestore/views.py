"""What a read sees: the documents of one database at one moment."""

import bisect
from collections.abc import Iterator, Mapping

from .messages import Document
from .names import path_key

Collection = dict[str, Document]


class View:
    """Documents by the path of their collection, then by id. Documents are never changed, only replaced."""

    def __init__(self, collections: Mapping[str, Collection]) -> None:
        self._collections = collections

    def get(self, path: str) -> Document | None:
        collection, _, document_id = path.rpartition("/")
        documents = self._collections.get(collection)
        return None if documents is None else documents.get(document_id)

    def collection(self, path: str) -> Mapping[str, Document]:
        """The documents of one collection by id."""
        return self._collections.get(path, {})

    def descendants(self, parent: str, collection_id: str) -> Iterator[Document]:
        """The documents below `parent` in all collections of that id, however deep; "" means of any id."""
        for path, documents in self._collections.items():
            if is_below(path, parent) and collection_id in ("", path.rpartition("/")[2]):
                yield from documents.values()

    def collection_ids(self, parent: str) -> list[str]:
        """The ids of the collections directly below a document or the root that have documents, at any depth."""
        start = len(parent) + 1 if parent else 0
        return sorted({path[start:].split("/", 1)[0] for path in self._collections if is_below(path, parent)})

    def document_ids(self, collection: str) -> list[str]:
        """The ids in a collection, in order, with those of missing documents that have sub-collections."""
        start = len(collection) + 1
        ids = {path[start:].split("/", 1)[0] for path in self._collections if is_below(path, collection)}
        return sorted(ids | self.collection(collection).keys(), key=path_key)


def is_below(path: str, parent: str) -> bool:
    """Whether `path` lies strictly below `parent`; everything lies below the root."""
    return not parent or path.startswith(f"{parent}/")


def page(items: list[str], token: str, size: int) -> tuple[list[str], str]:
    """One page of sorted ids after `token`, and the token of the next page ("" when this is the last)."""
    start = bisect.bisect_right(items, path_key(token), key=path_key) if token else 0
    chosen = items[start : start + size] if size > 0 else items[start:]
    more = start + len(chosen) < len(items)
    return chosen, chosen[-1] if chosen and more else ""
