"""What serves behind an endpoint: a set of versions and their shares, and how one follows another.

Shares are fractions of the endpoint's requests in a split, and the factors of the sum in an
ensemble; they sum to one over the versions that answer.
"""

import re
from collections.abc import Iterable
from typing import Any, Final, Literal

import msgspec

from tapster.contract.control import ModelVersion
from tapster.contract.errors import TapsterError
from tapster.registry import sharing as registry
from tapster.tenancy.shares.service import full

MOST: Final = 16
_CLOSE: Final = 1e-3
_ALIAS: Final = re.compile(r"[^:@]+:(.+)")


class Held(msgspec.Struct, frozen=True):
    """A version, the alias it was deployed by (or ""), its share; a shadow has none.

    Of another tenant's model `owner` is that tenant, and `model` what the owner calls it.
    `refused` is the package that the alias has moved to and could not be followed to.
    """

    model: str
    version: int
    alias: str
    digest: str
    weight: float = 1.0
    shadow: bool = False
    owner: str = ""
    refused: str = ""

    @property
    def called(self) -> str:
        """The model's full name."""
        return full(self.owner, self.model) if self.owner else self.model

    @property
    def ref(self) -> str:
        """NAME@VERSION."""
        return f"{self.called}@{self.version}"


class ServingSet(msgspec.Struct, frozen=True):
    """Versions of one model, or an ensemble; `number` tells an endpoint's ensembles apart."""

    variants: tuple[Held, ...]
    kind: Literal["split", "ensemble"] = "split"
    number: int = 0

    @property
    def answering(self) -> tuple[Held, ...]:
        """The versions that callers may be answered by."""
        return tuple(held for held in self.variants if not held.shadow)

    @property
    def shadows(self) -> tuple[Held, ...]:
        """The versions that get copies."""
        return tuple(held for held in self.variants if held.shadow)

    @property
    def main(self) -> Held:
        """The version with the largest share, the first of equals."""
        return max(self.answering, key=lambda held: held.weight)

    @property
    def digests(self) -> set[str]:
        """The packages that must be loaded."""
        return {held.digest for held in self.variants}

    def answers_as(self, other: "ServingSet | None") -> bool:
        """Whether callers would notice no difference."""
        return other is not None and self._answers() == other._answers()

    def _answers(self) -> tuple[str, dict[str, float]]:
        return self.kind, {f"{held.ref} {held.digest}": held.weight for held in self.answering}

    def shown(self) -> dict[str, Any]:
        """The main version's parts, with all of them as `variants`; shares of splits in percent."""
        unit = 100 if self.kind == "split" else 1
        variants = [
            {
                **msgspec.to_builtins(held),
                "model": held.called,
                "weight": round(held.weight * unit, 6),
            }
            for held in self.variants
        ]
        for each in variants:
            del each["refused"]
        main = self.main
        return {
            "model": main.called,
            "version": main.version,
            "alias": main.alias,
            "digest": main.digest,
            "kind": self.kind,
            "number": self.number,
            "variants": variants,
        }


def held(version: ModelVersion, reference: str, weight: float = 1.0, shadow: bool = False) -> Held:
    """A version as it was asked for: NAME:ALIAS is followed when the alias moves."""
    alias = _ALIAS.fullmatch(reference)
    name = alias[1] if alias else ""
    return Held(
        registry.bare(version),
        version.version,
        name,
        version.digest,
        weight,
        shadow,
        version.owner,
    )


def sole(one: Held) -> ServingSet:
    """One version that answers everybody."""
    return ServingSet((msgspec.structs.replace(one, weight=1.0, shadow=False),))


def with_share(serving: ServingSet, one: Held, share: float) -> ServingSet:
    """`one` takes `share`, the others keep their proportions of the rest; 1 replaces them.

    Raises TapsterError(conflict) when there is nobody to take the rest.
    """
    if share == 1.0:
        return sole(one)
    kept = [each for each in serving.variants if each.ref != one.ref]
    rest = sum(each.weight for each in kept if not each.shadow)
    if rest <= 0:
        raise TapsterError(
            "conflict",
            f"no other version is there to take the remaining {100 * (1 - share):g}%",
            hint="deploy another version, or give this one 100",
            field="weight",
        )
    scale = (1.0 - share) / rest
    scaled = [
        each if each.shadow else msgspec.structs.replace(each, weight=each.weight * scale)
        for each in kept
    ]
    mine = msgspec.structs.replace(one, weight=share, shadow=False)
    return _limited(msgspec.structs.replace(serving, variants=_placed(serving, scaled, mine)))


def with_shadow(serving: ServingSet, one: Held) -> ServingSet:
    """`one` gets copies, too. Raises TapsterError(conflict) for a version that answers."""
    if any(each.ref == one.ref and each.weight > 0 for each in serving.answering):
        raise TapsterError(
            "conflict",
            f"{one.ref} takes requests here: it cannot be a shadow as well",
            hint="give its share to another version first",
        )
    kept = [each for each in serving.variants if each.ref != one.ref]
    mine = msgspec.structs.replace(one, weight=0.0, shadow=True)
    return _limited(msgspec.structs.replace(serving, variants=(*kept, mine)))


def with_shadows(serving: ServingSet, shadows: Iterable[Held]) -> ServingSet:
    """Exactly these get copies."""
    bare = msgspec.structs.replace(serving, variants=serving.answering)
    for one in shadows:
        bare = with_shadow(bare, one)
    return bare


def with_weights(serving: ServingSet, given: dict[Held, float]) -> ServingSet:
    """Exactly these answer, with shares that sum to one; shadows stay unless they answer now."""
    answering = [
        msgspec.structs.replace(one, weight=share, shadow=False) for one, share in given.items()
    ]
    refs = {one.ref for one in answering}
    shadows = [each for each in serving.shadows if each.ref not in refs]
    return _limited(msgspec.structs.replace(serving, variants=(*answering, *shadows)))


def ensemble(members: dict[Held, float], number: int) -> ServingSet:
    """Members and their factors."""
    variants = tuple(
        msgspec.structs.replace(one, weight=factor, shadow=False) for one, factor in members.items()
    )
    return _limited(ServingSet(variants, "ensemble", number))


def moved(serving: ServingSet, before: Held, after: ModelVersion) -> ServingSet:
    """Another version in the place of one, which it joins if it is there already."""
    new = msgspec.structs.replace(before, version=after.version, digest=after.digest, refused="")
    found: dict[str, Held] = {}
    for each in serving.variants:
        one = new if each.ref == before.ref else each
        twin = found.get(one.ref)
        if twin is not None:
            both = twin.weight + one.weight
            alias = twin.alias or one.alias
            one = msgspec.structs.replace(
                one, weight=both, alias=alias, shadow=one.shadow and twin.shadow
            )
        found[one.ref] = one
    grown = serving.number + 1 if serving.kind == "ensemble" else 0
    return msgspec.structs.replace(serving, variants=tuple(found.values()), number=grown)


def refused(serving: ServingSet, one: Held, digest: str) -> ServingSet:
    """The set, where the alias of `one` is not followed to a package."""

    def marked(held: Held) -> Held:
        same = (held.owner, held.model, held.alias) == (one.owner, one.model, one.alias)
        return msgspec.structs.replace(held, refused=digest) if held.alias and same else held

    return msgspec.structs.replace(serving, variants=tuple(map(marked, serving.variants)))


def shares(given: dict[str, float], whole: float, field: str) -> dict[str, float]:
    """Weights as fractions of `whole`, which they must sum to.

    Raises TapsterError(invalid).
    """
    if not given:
        raise TapsterError("invalid", "no version is named", field=field)
    for ref, weight in given.items():
        if not 0 <= weight <= whole:
            raise TapsterError(
                "invalid",
                f"the weight of {ref[:250]!r} must be between 0 and {whole:g}",
                field=field,
            )
    total = sum(given.values())
    if abs(total - whole) > _CLOSE * whole:
        spelled = ", ".join(f"{ref[:100]}={weight:g}" for ref, weight in list(given.items())[:10])
        raise TapsterError(
            "invalid",
            f"the weights sum to {total:g}, not to {whole:g}: {spelled}",
            hint=f"give weights that sum to {whole:g}",
            field=field,
        )
    return {ref: weight / total for ref, weight in given.items()}


def _placed(serving: ServingSet, kept: list[Held], mine: Held) -> tuple[Held, ...]:
    """`mine` where it was, or behind those that answer."""
    order = {each.ref: at for at, each in enumerate(serving.answering)}
    answering = [*(each for each in kept if not each.shadow), mine]
    answering.sort(key=lambda each: order.get(each.ref, len(order)))
    return (*answering, *(each for each in kept if each.shadow))


def _limited(made: ServingSet) -> ServingSet:
    if len(made.variants) > MOST:
        raise TapsterError(
            "invalid",
            f"an endpoint has at most {MOST} versions",
            hint="remove some: tapster endpoints set E weights=A@1=90,A@2=10",
        )
    return made
