"""An answer of the classifier, or the reason why there is none, as HTML. Needs no script: the choice of the class whose
evidence is shown is a group of radio buttons, which the style sheet reads."""

import time
from html import escape

import explain

WAITING = """
<div class="note">
  <p>The answer comes here as soon as there is a picture.</p>
</div>
"""


def name(label):
    """ImageNet's labels are lists of synonyms: the first, and the rest."""
    first, _, rest = label.partition(", ")
    return first, rest


def percent(share):
    """Two digits that mean something; 100 only where it is."""
    value = 100 * share
    if 99.9 <= value < 100:
        return "over 99.9 %"
    return "under 0.1 %" if value < 0.1 else f"{value:.1f} %"


def failure(sentence):
    return f'<div class="note failure" role="alert"><h2>No answer</h2><p>{escape(sentence)}</p></div>'


def answer(found, begin):
    """`found` is an answer with explanation; `begin` when it was asked for (time.monotonic)."""
    predictions, maps = found["predictions"], found["explanation"]["maps"]
    first, _ = name(predictions[0]["label"])
    verdict = f"{escape(first)} <span>{percent(predictions[0]['probability'])}</span>"
    return f"""
<div class="answer">
  <h2 class="verdict"><small>Most likely</small> {verdict}</h2>
  <div class="columns">
    <fieldset class="bars">
      <legend>Choose a class to see which parts of the picture speak for it</legend>
      {"".join(bar(place, one) for place, one in enumerate(predictions))}
    </fieldset>
    <figure class="evidence">
      <div class="stack">
        <img src="{explain.seen_picture(found["explanation"]["seen"])}" alt="What the network saw">
        {"".join(layer(place, one, predictions[place]) for place, one in enumerate(maps))}
      </div>
      <label class="switch"><input type="checkbox" id="heat" checked> Show the heat map</label>
      <figcaption>{"".join(caption(place, one) for place, one in enumerate(maps))}</figcaption>
    </figure>
  </div>
  {facts(found, 1000 * (time.monotonic() - begin))}
</div>
"""


def bar(place, prediction):
    first, rest = name(prediction["label"])
    share = prediction["probability"]
    more = f' <span class="rest">{escape(rest)}</span>' if rest else ""
    checked = " checked" if place == 0 else ""
    return f"""
      <label class="bar"><input type="radio" name="why" value="{place}"{checked}>
        <span class="name">{escape(first)}{more}</span><span class="percent">{percent(share)}</span>
        <span class="track" aria-hidden="true"><span style="width:{max(0.4, 100 * share):.1f}%"></span></span>
      </label>"""


def layer(place, evidence, prediction):
    first, _ = name(prediction["label"])
    words = escape(f"Heat map for {first}: {explain.place(evidence['values'])}", quote=True)
    return f'<img class="heat heat-{place}" src="{explain.heat_map(evidence["values"])}" alt="{words}">'


def caption(place, evidence):
    """The sum that the map shows: exact, since the network ends in an average and one linear layer."""
    values = [value for row in evidence["values"] for value in row]
    speaks_for = sum(value for value in values if value > 0)
    against = sum(value for value in values if value < 0)
    return (
        f'<span class="sum sum-{place}">{len(values)} parts: {speaks_for:+.2f} for it, {against:+.2f} against it, '
        f"{evidence['bias']:+.2f} for the class itself: score {evidence['logit']:.2f}</span>"
    )


def facts(found, all_milliseconds):
    spent = found["milliseconds"]
    rows = [
        ("Reading the picture", f"{spent['decode']:.1f} ms"),
        ("Network", f"{spent['run']:.1f} ms"),
        ("All on this server", f"{all_milliseconds:.0f} ms"),
        ("CPU path", f"<code>{escape(found['path'])}</code>"),
    ]
    cells = "".join(f"<div><dt>{what}</dt><dd>{value}</dd></div>" for what, value in rows)
    return f'<dl class="facts">{cells}</dl>'
