"""Lua scripts on Redis, run by their digest: the text travels only where the server does not know it yet.

EVAL teaches a script to the very node that owns the keys, which SCRIPT LOAD would not after a failover. Every script
here declares its keys, all of one slot, and is harmless to repeat.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any, TypeAlias

from redis.exceptions import NoScriptError, ResponseError

from callboard.connections import Connections, redis_errors
from callboard.errors import Unavailable

Argument: TypeAlias = str | bytes | int
Call: TypeAlias = tuple[Sequence[str | bytes], Sequence[Argument]]
"""A script's keys and its further arguments."""
Command: TypeAlias = Sequence[Argument]


async def run(connections: Connections, script: str, keys: Sequence[str | bytes], *args: Argument) -> Any:
    """The script's answer. Use within `redis_errors`."""
    try:
        return await connections.commands.evalsha(_digest(script), len(keys), *keys, *args)
    except NoScriptError:
        return await connections.commands.eval(script, len(keys), *keys, *args)


async def run_many(
    connections: Connections,
    script: str,
    calls: Sequence[Call],
    *,
    ahead: Sequence[Command] = (),
    defects: bool = False,
) -> list[Any]:
    """Run a script on many keys, of any slots, in one pipeline: the answers in order.

    Commands `ahead` of them go in the same pipeline, and their answers come first; they too are harmless to repeat.
    Where an answer is not known, Unavailable stands in its place: of a cluster's nodes, one may be away. A refusal that
    is a defect (see `redis_errors`) is raised or, with `defects` true, stands in its place too: one key that is of
    another type must not cost the others. A few hundred at a time keep the event loop for a few milliseconds.
    """
    if not calls:
        return []
    try:
        with redis_errors(connections):
            by_digest = [*ahead, *_commands(("EVALSHA", _digest(script)), calls)]
            answers = await _pipelined(connections, by_digest, raise_on_error=False)
    except Unavailable as error:
        return [error] * (len(ahead) + len(calls))
    if failed := [number for number, answer in enumerate(answers) if isinstance(answer, Exception)]:
        # Once more, with the text. What fails again is raised, which makes the client look where the nodes are.
        by_text = [*ahead, *_commands(("EVAL", script), calls)]
        try:
            with redis_errors(connections):
                again = await _pipelined(connections, [by_text[number] for number in failed], raise_on_error=True)
        except Unavailable as error:
            again = [error] * len(failed)
        except ResponseError:
            if not defects:
                raise
            again = await _with_defects(connections, [by_text[number] for number in failed])
        for number, answer in zip(failed, again, strict=True):
            answers[number] = answer
    return answers


async def _with_defects(connections: Connections, commands: Sequence[Command]) -> list[Any]:
    try:
        with redis_errors(connections):
            answers = await _pipelined(connections, commands, raise_on_error=False)
    except Unavailable as error:
        return [error] * len(commands)
    return [_kind_of(connections, answer) if isinstance(answer, Exception) else answer for answer in answers]


def _kind_of(connections: Connections, error: Exception) -> Exception:
    try:
        with redis_errors(connections):
            raise error
    except (Unavailable, ResponseError) as kind:
        return kind


async def run_all(connections: Connections, script: str, calls: Sequence[Call]) -> list[Any]:
    """`run_many` for those who need every answer. Unavailable."""
    answers = await run_many(connections, script, calls)
    for answer in answers:
        if isinstance(answer, Unavailable):
            raise answer
    return answers


def _commands(how: tuple[str, str], calls: Sequence[Call]) -> list[Command]:
    return [(*how, len(keys), *keys, *args) for keys, args in calls]


async def _pipelined(connections: Connections, commands: Sequence[Command], *, raise_on_error: bool) -> list[Any]:
    pipeline: Any = connections.commands.pipeline(transaction=False)
    for command in commands:
        # Not `pipeline.evalsha`, which redis-py refuses in a cluster: a node may lack the script. It is taught it here.
        pipeline.execute_command(*command)
    answers: list[Any] = await pipeline.execute(raise_on_error)
    return answers


@cache
def _digest(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
