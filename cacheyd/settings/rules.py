"""The rules of `allow` and `deny`: what clients can ask for."""

from functools import lru_cache

from cacheyd.protocol.reference import Kind, Reference
from cacheyd.protocol.registries import names_of
from cacheyd.settings import values as parse
from cacheyd.settings.patterns import MAX_DECIDED, Pattern, image_repository, parse_pattern, quoted


def parse_rules(value: object) -> tuple[str, ...]:
    """A list of patterns; in a text, commas separate them. Raises ValueError with the expected form."""
    texts = parse.patterns(value)
    for text in texts:
        try:
            parse_pattern(text)
        except ValueError as error:
            message = f"patterns of registries or of registry/repository:tag; {quoted(text)} can never match: {error}"
            raise ValueError(message) from None
    return texts


class Rules:
    """Both lists. The most specific rule that covers a request decides. `deny` wins a tie, and also wins if both rules are
    patterns of registries.
    """

    def __init__(self, allow: tuple[str, ...] = (), deny: tuple[str, ...] = ()) -> None:
        self._allow = _sorted(allow)
        self._deny = _sorted(deny)
        self._decided = lru_cache(maxsize=MAX_DECIDED)(self._decide)

    def refusal(self, ref: Reference) -> tuple[str, str]:
        """The reason why `ref` is denied, and the rule that denies it; two empty texts if it is allowed.

        A request without a tag (for a blob, a list, or by digest) can be a part of any image. So an `allow` rule with a tag
        allows all these requests in its repository: images consist of them. A `deny` rule with a tag denies only that tag.
        """
        if not self._deny and not self._allow:
            return "", ""
        tag = ref.reference if ref.kind is Kind.MANIFEST and ref.digest is None else None
        return self._decided(ref.registry, ref.repository, tag)

    def _decide(self, registry: str, repository: str, tag: str | None) -> tuple[str, str]:
        # A rule that denies an IPv4 address also denies every IPv6 address that leads to it.
        names, repository = names_of(registry), image_repository(registry, repository)
        covers = (r for r in self._deny if any(r.covers(one, repository, tag, untagged=False) for one in names))
        denied = next(covers, None)
        allowed = next((r for r in self._allow if r.covers(registry, repository, tag, untagged=True)), None)
        if denied is not None and (allowed is None or denied.weight >= allowed.weight):
            what = "registry is" if denied.repository is None else "image is" if denied.tag is None else "tag is"
            rule = f"deny = {quoted(denied.text)}"
            return f"this {what} denied here, by {rule}", rule
        if self._allow and allowed is None:
            what = "image" if any(rule.registry.fullmatch(registry) for rule in self._allow) else "registry"
            return f"this {what} is not among those allowed here, by any rule of allow", "allow"
        return "", ""


def _sorted(texts: tuple[str, ...]) -> tuple[Pattern, ...]:
    return tuple(sorted(map(parse_pattern, texts), key=lambda rule: -rule.weight))
