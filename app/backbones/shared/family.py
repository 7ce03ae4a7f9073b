"""What is told of a family before any of its models is loaded."""

from dataclasses import dataclass

from app.method.backbone import ImageTextScore


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        name: Its file's name, and what stands before the colon in EXEMPLAR_BACKBONE.
        models: What they are called.
        source: An example of what stands behind the colon; empty where nothing need stand there.
        attention: Where a prompt's tokens look at the patches.
        image_text_score: How a model says whether a text and an image belong together.
        tuned: What one example may change, besides the rows of its words' tokens.
        parameters_m: Of the example, in millions.
    """

    name: str
    models: str
    source: str
    attention: str
    image_text_score: ImageTextScore
    tuned: str
    parameters_m: float

    @property
    def setting(self) -> str:
        """An example of EXEMPLAR_BACKBONE."""
        return f"{self.name}:{self.source}" if self.source else self.name
