"""The sentences of a scaling report: the answer, what it is read against, and why a small exponent differs.

`fit` is a ScalingFit as a dict. Every sentence is made from it; what is not known is not said.
"""

import math
from collections.abc import Sequence
from typing import Any

from minilm.report.scaling_panels import (
    COUNT_NAMES,
    amount,
    finite_points,
    form_of,
    law_of,
    replicated,
)
from minilm.studies.budget import REFIT, ChinchillaLaw
from minilm.studies.power_law import DELTA, PowerLaw
from minilm.studies.scaling import KAPLAN_ALPHA, MAX_MOVE, MAX_WIDTH, MIN_DECADES, MIN_SEEDS, MIN_SIZES

FABLES = "fables"
Fit = dict[str, Any]


def interval(low: float | None, high: float | None) -> str:
    """An end that is None lies beyond what was searched."""
    if low is None and high is None:
        return "open at both ends"
    if high is None:
        return f"from {low:.3f}, no upper end"
    return f"to {high:.3f}, no lower end" if low is None else f"{low:.3f} to {high:.3f}"


def span(values: Sequence[float]) -> str:
    low, high = amount(min(values)), amount(max(values))
    return low if low == high else f"{low} to {high}"


# --- the answer -------------------------------------------------------------------------------------------------------


def verdict(fit: Fit) -> str:
    """The exponent with its interval, or that there is none."""
    if fit["exponent"] is None:
        broken = len(fit["refusals"])
        rules = "a rule that an exponent needs" if broken == 1 else f"{broken} rules that an exponent needs"
        return f"No exponent is reported, because this ladder breaks {rules}:"
    law = law_of(fit)
    known = f"(95% interval of the exponent {interval(law.alpha_low, law.alpha_high)})"
    over = f"with N {COUNT_NAMES[fit['count']]}"
    if fit["form"] == "offset":
        return f"Validation loss falls towards {law.E:.3f} nats a token as N^-{law.alpha:.3f} {known}, {over}."
    most = "" if law.E_high is None else f": E is at most {law.E_high:.3f} nats a token"
    return f"Validation loss falls as N^-{law.alpha:.3f} {known}, {over}; no floor is found{most}."


def descriptive(fit: Fit, further: bool) -> str:
    """The slope where no exponent is reported, named as what it is. further: a law of size and data is told later."""
    if further:
        return "These runs differ in tokens, so what they say is told by the laws of size and data below."
    if fit["exponent"] is not None or fit["slope"] is None:
        return ""
    return (
        f"Descriptive slope only: over these sizes log L falls by {fit['slope']:.3f} for each unit of log N, with N "
        f"{COUNT_NAMES[fit['count']]}. It describes these runs and says nothing of other sizes."
    )


# --- what the tables say ----------------------------------------------------------------------------------------------


def sizes_note(fit: Fit) -> str:
    said = [f"N counts {COUNT_NAMES[fit['count']]}: an exponent belongs to its count."]
    if replicated(fit):
        said.append("Intervals of the mean are by the spread of seeds pooled over sizes.")
    if law_of(fit):
        said.append("The local slope is that of log L on log N under the curve: a pure power law seen from there.")
    return " ".join(said)


def forms_note(fit: Fit) -> str:
    said = []
    if fit["exponent"] is None and fit["form"]:
        said.append("Both were fitted and neither is reported: they show what the refusals are about.")
    if fit["form"] == "pure" and fit["offset"]:
        said.append("E is estimated at zero, so the two are one curve; what is learnt is the upper end of E.")
    if fit["form"] and not replicated(fit):
        said.append("One seed a size leaves the spread of seeds unknown, so there is no interval.")
    if fit["misfit_p"] is not None:
        said.append(f"Were the curve true, means this far from it would come with probability {fit['misfit_p']:.2g}.")
    return " ".join(said)


def floor(fit: Fit) -> str:
    """E beside the entropy of the source, which is known only where the source was written for it."""
    law = form_of(fit, "offset")
    if fit["floor"] is None or law is None:
        return ""
    said = f"The source's own entropy is {fit['floor']:.3f} nats a token; the fitted E is {law.E:.3f}"
    if not replicated(fit):
        return f"{said}, without an interval to hold the two against each other."
    known = interval(law.E_low, law.E_high)
    if fit["exponent"] is None:
        return f"{said} ({known}), of a fit that is not reported: this checks neither."
    if fit["floor_inside"]:
        why = "An extrapolation to infinite size, checked against the truth: no text of unknown entropy allows it."
    elif fit["floor"] < law.E:
        why = "At a fixed number of tokens E also holds what the missing data cost, so it may well lie above."
    else:
        why = "No model can reach such an E, so the curve does not hold beyond these sizes."
    where = "inside" if fit["floor_inside"] else "outside"
    return f"{said} ({known}), so the source's entropy is {where} E's interval. {why}"


def law_sentences(fit: Fit, entropy: float | None) -> list[str]:
    """fit: a LawFit as a dict."""
    if fit["law"] is None:
        return []
    law = ChinchillaLaw(**fit["law"])
    total = law.alpha + law.beta
    said = [
        f"L = E + A/N^alpha + B/D^beta over {fit['n_points']} runs, D in tokens (Hoffmann et al. 2022, equation 10).",
        f"{fit['agreeing']} of {fit['starts']} starts ended at the same least loss; the numbers carry no interval.",
        f"By it the best size grows as compute to the power {law.beta / total:.2f}, and the best number of tokens as "
        f"compute to the power {law.alpha / total:.2f}.",
    ]
    if entropy is not None:
        said.append(f"The source's own entropy is {entropy:.3f} nats a token; E of this law is {law.E:.3f}.")
    return said


def isoflop_sentences(fit: Fit) -> list[str]:
    """fit: an IsoFlopFit as a dict."""
    if fit["n_exponent"] is None:
        return []
    return [
        f"The best size grows as compute to the power {fit['n_exponent']:.3f} (95% interval "
        f"{interval(fit['n_low'], fit['n_high'])}), its tokens as compute to the power {fit['d_exponent']:.3f}; "
        "Hoffmann et al. (2022, table 2) found 0.49 and 0.51 by this method."
    ]


def how_fitted(fit: Fit) -> list[str]:
    said = [
        f"Both forms are fitted to every finite run by the Huber loss (delta {DELTA:g}) on log L, summed; at each "
        "alpha the rest follows by least squares with E at 0 or above, so that alpha is found by a search on a line."
    ]
    if replicated(fit):
        said.append(
            f"Intervals are profile likelihood at a spread of {fit['spread']:.2%} of the loss between seeds, pooled "
            f"over sizes with {fit['spread_df']} degrees of freedom."
        )
    said.append(
        f"An exponent is reported from {MIN_SIZES} sizes over {MIN_DECADES:g} decade with {MIN_SEEDS} seeds each, if "
        f"its interval is at most {MAX_WIDTH} wide and leaving out any one size moves it by at most {MAX_MOVE}."
    )
    return said


# --- Kaplan -----------------------------------------------------------------------------------------------------------


def kaplan(fit: Fit) -> list[str]:
    if fit["kaplan_ratio"] is None:
        return [fit["kaplan_note"]]
    ratio = f"{fit['slope']:.3f}, is {fit['kaplan_ratio']:.2f} times Kaplan's {KAPLAN_ALPHA}"
    if fit["exponent"] is None:
        ratio = f"The descriptive slope, {ratio}; what refuses an exponent refuses this comparison too."
    else:
        ratio = f"The slope of the pure form, {ratio}."
    return [ratio, fit["kaplan_note"]]


def kaplan_why(fit: Fit, points: Sequence[dict[str, Any]], source: str | None) -> list[tuple[str, str]]:
    """(subject, sentences): why an exponent of a small ladder differs from Kaplan's, and may agree by chance."""
    sizes = fit["sizes"]
    said = [("Data", _data(fit, source))]
    if sizes:
        said.append(
            (
                "Size",
                "Kaplan's models have up to 1.5 billion non-embedding parameters (Kaplan et al. 2020, section 3); "
                f"these have {span([s['n'] for s in sizes])} by the count named here.",
            )
        )
    tokens = [p["tokens"] for p in finite_points(points) if p["tokens"]]
    if tokens:
        ratios = [p["tokens"] / p["n_params"][fit["count"]] for p in finite_points(points) if p["tokens"]]
        said.append(
            (
                "Regime",
                "Kaplan's L(N) was measured with data in plenty, up to 23 billion tokens (section 3). These runs read "
                f"{span(tokens)} tokens, {span(ratios)} a parameter: where that is little, a larger model is held back "
                "by its data, and the slope measures that too.",
            )
        )
    return [*said, ("Coincidence", _coincidence(sizes))]


def _data(fit: Fit, source: str | None) -> str:
    if fit["floor"] is None:
        return (
            "Another text has another entropy and other things to learn. Kaplan's form has no floor: it was fitted to "
            "web text, on which none was yet to be seen."
        )
    kind = "Fables are written by a grammar" if source == FABLES else "This text is from a source"
    return (
        f"{kind} of known entropy, {fit['floor']:.3f} nats a token, towards which every curve must flatten. Kaplan's "
        "form has no floor: it was fitted to web text, on which none was yet to be seen."
    )


def _coincidence(sizes: Sequence[dict[str, Any]]) -> str:
    law = PowerLaw(REFIT.E, REFIT.A, REFIT.alpha, None, None, REFIT.E, None)
    slopes = ", ".join(f"{law.slope(n):.3f} at {amount(n)}" for n in (1e6, 1e7, 1e8))
    here = ""
    if sizes:
        ends = " to ".join(f"{law.slope(sizes[i]['n']):.2f}" for i in (0, -1))
        here = f" At the sizes of this ladder, far below those that it was fitted on, it would be {ends}."
    return (
        "With a floor E the local slope is alpha·(1 - E/L), which passes through every value on its way to 0. "
        f"Chinchilla's law without its data term (alpha {REFIT.alpha}, E {REFIT.E}; Besiroglu et al. 2024) "
        f"has {slopes} parameters.{here} A small ladder that gives {KAPLAN_ALPHA} need not have found Kaplan's law."
    )


def loss_of(point: dict[str, Any]) -> str:
    loss = point["loss"]
    return f"{loss:.4f}" if loss is not None and math.isfinite(loss) else "diverged"
