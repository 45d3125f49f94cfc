"""A stream's targets always hold what their queries would return: random commits, without a network between."""

import asyncio
import random
from typing import Any

import pytest
from google.cloud.firestore_v1.types import StructuredQuery as Query
from google.cloud.firestore_v1.types import TargetChange

from callboard_local.firestore.database import Database
from callboard_local.firestore.messages import Document, ListenRequest, ListenResponse, StructuredQuery, Write
from callboard_local.firestore.queries import CompiledQuery
from callboard_local.firestore.streams import ListenStream

pytestmark = pytest.mark.anyio

Holdings = dict[int, dict[str, Document]]


def some_queries() -> dict[int, StructuredQuery]:
    """By target id: whole collection, filtered, limited, bounded, a group, everything."""
    queries: dict[int, Any] = {number: StructuredQuery() for number in range(1, 7)}
    for number, query in queries.items():
        selector = StructuredQuery.CollectionSelector(collection_id="" if number == 6 else "k")
        selector.all_descendants = number >= 5
        query.from_.append(selector)
    comparison = queries[2].where.field_filter
    comparison.field.field_path = "n"
    comparison.op = Query.FieldFilter.Operator.GREATER_THAN
    comparison.value.integer_value = 4
    for number in (3, 4):
        order = StructuredQuery.Order()
        order.field.field_path = "n"
        queries[number].order_by.append(order)
    queries[3].limit.value = 3
    queries[3].offset = 1
    queries[4].start_at.values.append(comparison.value)
    return queries


def random_write(root: str, chance: random.Random) -> Write:
    name = f"{root}/{chance.choice(['k', 'u/1/k', 'u/2/other'])}/d{chance.randint(0, 6)}"
    write = Write()
    if chance.random() < 0.25:
        write.delete = name
        return write
    write.update.name = name
    if chance.random() < 0.8:
        write.update.fields["n"].integer_value = chance.randint(0, 9)
    return write


def fold(holdings: Holdings, response: ListenResponse) -> bool:
    """Take a message in; whether all that was said until now is consistent."""
    match response.WhichOneof("response_type"):
        case "target_change":
            change = response.target_change
            for target_id in change.target_ids:
                if change.target_change_type == TargetChange.TargetChangeType.ADD:
                    holdings[target_id] = {}
            return not change.target_ids
        case "document_change":
            document = response.document_change.document
            for target_id in response.document_change.target_ids:
                holdings[target_id][document.name] = document
            gone, name = response.document_change.removed_target_ids, document.name
        case "document_delete":
            gone, name = response.document_delete.removed_target_ids, response.document_delete.document
        case _:
            gone, name = response.document_remove.removed_target_ids, response.document_remove.document
    for target_id in gone:
        assert holdings[target_id].pop(name, None) is not None, "only what a target held can leave it"
    return False


@pytest.mark.parametrize("seed", range(5))
async def test_targets_hold_what_their_queries_return(seed: int) -> None:
    chance = random.Random(seed)
    database = Database("projects/p/databases/d")
    queries = some_queries()
    compiled = {number: CompiledQuery("", query) for number, query in queries.items()}
    stream, holdings = ListenStream(database), Holdings()
    responses = aiter(stream.responses())
    for number, query in queries.items():
        request = ListenRequest(database=database.name)
        request.add_target.target_id = number
        request.add_target.query.parent = database.root
        request.add_target.query.structured_query.CopyFrom(query)
        stream.handle(request)
    for _ in range(150):
        database.commit([random_write(database.root, chance) for _ in range(chance.randint(1, 4))])
        while not stream.idle:
            fold(holdings, await asyncio.wait_for(anext(responses), 1))
        results = {number: query.run(database.view) for number, query in compiled.items()}
        assert holdings == {n: {document.name: document for document in found} for n, found in results.items()}
    stream.close()
