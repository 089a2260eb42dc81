"""What may be asked for: the rules of `allow` and `deny`."""

from functools import lru_cache

from cacheyd.protocol.reference import Kind, Reference
from cacheyd.protocol.registries import names_of
from cacheyd.settings import values as parse
from cacheyd.settings.patterns import MAX_DECIDED, Pattern, image_repository, parse_pattern, quoted


def parse_rules(value: object) -> tuple[str, ...]:
    """A list of patterns; in a text they are separated by commas. Raises ValueError with what was expected."""
    texts = parse.patterns(value)
    for text in texts:
        try:
            parse_pattern(text)
        except ValueError as error:
            message = f"patterns of registries or of registry/repository:tag; {quoted(text)} can never match: {error}"
            raise ValueError(message) from None
    return texts


class Rules:
    """Both lists. The most specific rule that covers a request decides; `deny` wins a tie, and between registries."""

    def __init__(self, allow: tuple[str, ...] = (), deny: tuple[str, ...] = ()) -> None:
        self._allow = _sorted(allow)
        self._deny = _sorted(deny)
        self._decided = lru_cache(maxsize=MAX_DECIDED)(self._decide)

    def refusal(self, ref: Reference) -> tuple[str, str]:
        """Why this may not be asked for, and the rule that says so; two empty texts if it may.

        A request without a tag (for a blob, a list, or by digest) may be for any image. So a rule with a tag allows all of
        these in its repository, because its images consist of them, and denies only requests by that tag.
        """
        if not self._deny and not self._allow:
            return "", ""
        tag = ref.reference if ref.kind is Kind.MANIFEST and ref.digest is None else None
        return self._decided(ref.registry, ref.repository, tag)

    def _decide(self, registry: str, repository: str, tag: str | None) -> tuple[str, str]:
        # What is denied at an IPv4 address is denied by whatever IPv6 address leads there, too.
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
