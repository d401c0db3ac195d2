"""MODEL_CARD.md: what the encoder is, how good, and how to use it (after arXiv 1810.03993)."""

from mae.report.benchmarked import Benchmarked
from mae.report.story import Story
from mae.report.templating import render


def render_card(story: Story) -> str:
    """Return the model card as Markdown."""
    return render(
        "model_card.md.j2",
        story=story,
        findings=story.findings,
        speed=Benchmarked.of(story.findings),
    )
