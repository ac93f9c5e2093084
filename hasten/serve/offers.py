"""Which operation a request asks for, where protocols share a path."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from hasten.serve.calls import Operation, Protocol, Refusal


@dataclass(frozen=True, slots=True)
class Offer:
    """An operation, and whose it is."""

    protocol: Protocol
    operation: Operation

    def likeness(self, given: object) -> int:
        """How many of a body's fields the operation knows, less those that it misses."""
        if self.operation.body is None or not isinstance(given, dict):
            return 0
        fields = self.operation.body.model_fields
        missing = sum(field.is_required() and name not in given for name, field in fields.items())
        return len(fields.keys() & given.keys()) - missing


def by_path(known: Iterable[Protocol]) -> tuple[tuple[Offer, ...], ...]:
    """The operations of each method and path, together."""
    paths: dict[tuple[str, str], list[Offer]] = {}
    for protocol in known:
        for one in protocol.operations:
            paths.setdefault((one.method, one.path), []).append(Offer(protocol, one))
    return tuple(map(tuple, paths.values()))


def likeliest(offers: Iterable[Offer], given: object) -> list[Offer]:
    """Those whose body it is most like, first."""
    known = list(offers)
    return known if len(known) == 1 else sorted(known, key=lambda offer: -offer.likeness(given))


def matching(likely: Sequence[Offer], given: object) -> tuple[Offer, object]:
    """The first operation whose body this is, and the body.

    Raises:
        Refusal: no operation's; it says what is wrong for those that are like it most.
    """
    errors = []
    for offer in likely:
        if offer.operation.body is None:
            return offer, None
        try:
            return offer, offer.operation.body.model_validate(given)
        except ValidationError as error:
            if offer.likeness(given) == likely[0].likeness(given):
                errors += error.errors(include_url=False, include_input=False)
    fields = [next(iter(error["loc"]), "body") for error in errors]
    messages = [
        error["msg"] for error, field in zip(errors, fields, strict=True) if field == fields[0]
    ]
    raise Refusal(422, "validation", f"{fields[0]}: {', or: '.join(dict.fromkeys(messages))}")
