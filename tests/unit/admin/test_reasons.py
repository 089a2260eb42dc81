"""Why something is not there, in one line."""

from cacheyd.admin.reasons import Reason, told


def test_reasons_that_are_alike_are_told_once() -> None:
    alike = [Reason(f"sha256-{n}.sig", "503 no") for n in range(20)]
    assert told(alike) == "sha256-0.sig: 503 no (and for 19 more)"
    assert told([*alike[:1], Reason("", "it is not there"), *alike[:1]]) == "sha256-0.sig: 503 no; it is not there"
    many = told([Reason(f"layer {n}", f"why {n}") for n in range(50)])
    assert many.endswith("; layer 3: why 3; and 46 other reasons")
