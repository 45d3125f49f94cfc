"""One Listen stream: kept open while it has targets, reopened with back-off, judged when it ends.

Ends that are nobody's fault (OK, CANCELLED, UNAVAILABLE, silence …) reconnect, on another connection after silence. A
refusal of the whole service (PERMISSION_DENIED, UNAUTHENTICATED with fresh credentials) reaches every watch. Any other
failure, and PERMISSION_DENIED on a stream that was served, may be the doing of one target that the server cannot
digest: the targets it never answered are then asked one at a time, so that the one which ends the stream is found and
ended alone.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any

import grpc
from google.api_core.exceptions import GoogleAPICallError
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import GoogleAuthError
from google.cloud.firestore import AsyncClient
from grpc import StatusCode

from callboard.errors import CallError, Internal
from callboard_firebase.channel import Lines
from callboard_firebase.errors import error_for, status_of
from callboard_firebase.listen.conversation import Conversation
from callboard_firebase.listen.ending import BLAMELESS, PERMANENT, REFUSALS, End
from callboard_firebase.listen.options import ListenOptions
from callboard_firebase.listen.target import Target, probe
from callboard_firebase.outage import Outage

_log = logging.getLogger("callboard_firebase.listen")

_UNAUTHENTICATED_ATTEMPTS = 3
_STRIKES = 5
_STRIKES_FORGOTTEN_S = 60.0
# Time-outs that a target waits while the stream talks of others: a long first read must not look like silence.
_PATIENCE = 3


class Stream:
    """Runs as one task (`run`); targets come and go while it lives."""

    def __init__(self, client: AsyncClient, lines: Lines, outage: Outage, options: ListenOptions) -> None:
        self._client = client
        self._lines = lines
        self.line = lines.take()
        self._outage = outage
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._backoff = options.backoff()
        self._members: dict[Target, None] = {}
        self._later: dict[Target, asyncio.TimerHandle] = {}
        self._wanted = asyncio.Event()
        self._conversation: Conversation | None = None
        self._watchdog: asyncio.Timeout | None = None
        self._hung_up: StatusCode | None = None
        self._ticks: asyncio.TimerHandle | None = None
        self._probe: Target | None = None
        self._cautious = False
        self._unauthenticated = 0
        self.reconnects = 0
        """How often the stream ended while it had targets."""
        self.heard_at: float | None = None
        """Loop time of the last response."""
        self.last_status: StatusCode | None = None
        """How the last connection ended."""

    def __len__(self) -> int:
        return len(self._members)

    @property
    def connected(self) -> bool:
        """Whether the server has answered on the present connection."""
        return self._conversation is not None and self.heard_at == self._conversation.heard_at

    def unsettled(self) -> int:
        """The targets that wait for a snapshot of the present connection."""
        return sum(not target.settled or not target.id for target in self._members)

    def add(self, target: Target) -> None:
        self._members[target] = None
        self._wanted.set()
        self._ask_next(target)

    def remove(self, target: Target) -> None:
        if target not in self._members:
            return
        del self._members[target]
        if (timer := self._later.pop(target, None)) is not None:
            timer.cancel()
        if self._conversation is not None:
            if target.id:
                self._conversation.drop(target)
            self._ask_next()
        if not self._members:
            self._wanted.clear()
            self._hang_up(StatusCode.OK)

    def fail_all(self, failure: CallError) -> None:
        for target in list(self._members):
            self._lose(target, failure)

    async def run(self) -> None:
        try:
            while True:
                if not self._members:
                    self._outage.resign(self)
                await self._wanted.wait()
                end = await self._converse()
                if not end.left:
                    await self._recover(end)
        finally:
            self._outage.resign(self)

    async def _recover(self, end: End) -> None:
        """Draw the conclusions of an end, and wait until the stream may be opened again."""
        self.last_status = end.status
        self.reconnects += 1
        self._judge(end)
        cap_s = self._options.unavailable_cap_s if end.status is StatusCode.UNAVAILABLE else None
        not_before = self._loop.time() + self._backoff.delay(cap_s)
        _log.warning("listen stream ended (%s), %d targets", end.status.name, len(self._members))
        if self._hung_up is StatusCode.DEADLINE_EXCEEDED:
            self.line = await self._lines.exchange(self.line)
        if end.status in REFUSALS:
            await self._outage.wait(self, cap_s)
        else:
            self._outage.resign(self)
        await asyncio.sleep(not_before - self._loop.time())

    async def _converse(self) -> End:
        """One connection, from its first request until it ends."""
        self._conversation = conversation = Conversation(self._client, self)
        self._hung_up = None
        status = StatusCode.OK
        error: Exception | None = None
        call: Any = None
        self._ticks = self._loop.call_later(self._tick_s(), self._tick)
        try:
            async with asyncio.timeout(None) as self._watchdog:
                for target in list(self._members):
                    self._ask_next(target)
                # The default retry of the generated client would reopen by itself, and lose requests doing so.
                api = await self.line.api()
                call = await api.listen(
                    requests=conversation.outbox, metadata=self._client._rpc_metadata, retry=None, timeout=None
                )
                while (response := await call.read()) is not grpc.aio.EOF:
                    conversation.receive(response._pb)
                    self.heard_at = conversation.heard_at
        except TimeoutError:
            status = self._hung_up or StatusCode.DEADLINE_EXCEEDED
        except asyncio.CancelledError:
            # gRPC raises it too, when someone closed the channel under the call.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            status = StatusCode.CANCELLED
        except (GoogleAPICallError, GoogleAuthError, grpc.RpcError) as failure:
            status, error = status_of(failure), failure
        finally:
            suspects = conversation.unproven()
            self._conversation = self._watchdog = self._probe = None
            if self._ticks is not None:
                self._ticks.cancel()
            while self._later:
                self._later.popitem()[1].cancel()
            conversation.end()
            if call is not None:
                call.cancel()
                # Its last events are still on their way; they would find the loop gone at a shutdown.
                await call.code()
        return End(status, error, suspects, conversation.answered, left=self._hung_up is StatusCode.OK)

    # -- judging

    def _judge(self, end: End) -> None:
        status = end.status
        suspects = [target for target in end.suspects if target in self._members]
        if status is StatusCode.UNAUTHENTICATED and self._unauthenticated < _UNAUTHENTICATED_ATTEMPTS:
            self._unauthenticated += 1
            self._renew_credentials()
        elif status is StatusCode.UNAUTHENTICATED or (
            status is StatusCode.PERMISSION_DENIED and not (end.answered and suspects)
        ):
            self._refuse(end)
        elif status is StatusCode.RESOURCE_EXHAUSTED:
            self._backoff.saturate()
        elif status in BLAMELESS:
            pass
        elif len(suspects) == 1:
            self._blame(suspects[0], end)
        elif suspects:
            self._cautious = True
        elif status in PERMANENT:
            tokens = [target for target in self._members if target.token]
            for target in tokens:
                target.token = b""
            if not tokens:
                self._refuse(end)

    def _blame(self, target: Target, end: End) -> None:
        """It was the only target without an answer when the stream failed."""
        alone = len(self._members) == 1
        if end.status in PERMANENT or (not alone and self._strike(target) >= _STRIKES):
            self._lose(target, end.failure())

    def _refuse(self, end: End) -> None:
        self._unauthenticated = 0
        _log.error("listen stream refused (%s): %d watches end", end.status.name, len(self._members))
        self.fail_all(end.failure())

    def _renew_credentials(self) -> None:
        credentials = self._client._credentials
        if credentials is not None and not isinstance(credentials, AnonymousCredentials):
            # Without a token they are refreshed, on gRPC's own thread, before the next call.
            credentials.token = None

    def _lose(self, target: Target, failure: CallError) -> None:
        """End one watch with an error; the others stay."""
        self.remove(target)
        target.watch.fail(failure)

    def _strike(self, target: Target) -> int:
        now = self._loop.time()
        if now - target.struck_at > _STRIKES_FORGOTTEN_S:
            target.strikes = 0
        target.strikes += 1
        target.struck_at = now
        return target.strikes

    # -- asking

    def _ask_next(self, target: Target | None = None) -> None:
        """Ask `target`; in the cautious mode, at most one target that the server has never answered is under way."""
        conversation = self._conversation
        if conversation is None:
            return
        if not self._cautious or (target is not None and target.proven):
            if target is not None:
                conversation.ask(target)
            return
        if conversation.unproven():
            return
        suspects = [member for member in self._members if not member.proven]
        self._cautious = bool(suspects)
        suspect = next((member for member in suspects if member not in self._later), None)
        if suspect is not None:
            conversation.ask(suspect)

    def _ask_again(self, target: Target, status: StatusCode) -> None:
        """The server let a target go, or disagrees about its documents: ask for its whole state. The rest goes on."""
        target.token = b""
        strikes = self._strike(target)
        if strikes > _STRIKES:
            self._lose(target, error_for(status))
        elif strikes == 1:
            self._ask_now(target)
        else:
            # Again within a minute: after a delay of its own, or this would spin as fast as the server answers.
            ceiling_s = min(self._options.backoff_cap_s, self._options.backoff_base_s * 2.0 ** (strikes - 1))
            delay_s = random.uniform(0, ceiling_s)  # noqa: S311 - spreads load, guards nothing
            self._later[target] = self._loop.call_later(delay_s, self._ask_now, target)
            self._ask_next()

    def _ask_now(self, target: Target) -> None:
        self._later.pop(target, None)
        self._ask_next(target)

    # -- Verdicts

    def on_settled(self, target: Target) -> None:
        self._backoff.reset()
        self._outage.answered(self)
        self._unauthenticated = 0
        if target is self._probe:
            self._probe = None
            if self._conversation is not None:
                self._conversation.drop(target)
        elif self._cautious:
            self._ask_next()

    def on_removed(self, target: Target, status: int) -> None:
        if target is self._probe:
            self._probe = None
            return
        cause = next((code for code in StatusCode if code.value[0] == status), StatusCode.UNKNOWN)
        _log.warning("listen target removed by the server (%s)", cause.name)
        # A token that is too old can be what the server refuses: then the target deserves one question without it.
        if cause in PERMANENT and not (target.token and cause is StatusCode.INVALID_ARGUMENT):
            self._lose(target, error_for(cause))
        else:
            self._ask_again(target, StatusCode.UNAVAILABLE if status == 0 else cause)

    def on_mismatch(self, target: Target) -> None:
        _log.info("listen target differs from the server's count; it is read again")
        self._ask_again(target, StatusCode.UNAVAILABLE)

    def on_undecodable(self, target: Target, error: Exception) -> None:
        _log.error("a document of a listen target cannot be decoded (%s)", type(error).__name__)
        failure = Internal("A document cannot be decoded.")
        failure.__cause__ = error
        self._lose(target, failure)

    # -- silence

    def _tick_s(self) -> float:
        return min(self._options.silence_timeout_s, self._options.probe_interval_s or 60.0) / 2

    def _tick(self) -> None:
        conversation = self._conversation
        if conversation is None:
            return
        self._ticks = self._loop.call_later(self._tick_s(), self._tick)
        now = self._loop.time()
        silent_s = now - conversation.heard_at
        timeout_s, interval_s = self._options.silence_timeout_s, self._options.probe_interval_s
        owed = conversation.longest_owed()
        if owed is not None and min(silent_s, now - owed[1]) > timeout_s:
            self._hang_up(StatusCode.DEADLINE_EXCEEDED)
        elif owed is not None and now - owed[1] > _PATIENCE * timeout_s:
            self._overlooked(conversation, owed[0])
        elif interval_s is not None and self._probe is None and silent_s >= interval_s:
            self._probe = probe(self._client)
            conversation.ask(self._probe)

    def _overlooked(self, conversation: Conversation, target: Target) -> None:
        """The stream talks, but not of this target."""
        conversation.drop(target)
        if target is self._probe:
            self._probe = None
        else:
            self._ask_again(target, StatusCode.UNAVAILABLE)

    def _hang_up(self, status: StatusCode) -> None:
        """End the present connection from our side."""
        if self._watchdog is not None and self._hung_up is None:
            self._hung_up = status
            self._watchdog.reschedule(self._loop.time())
