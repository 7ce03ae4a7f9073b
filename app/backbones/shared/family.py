"""Description of a model family, available without loading a model."""

from dataclasses import dataclass

from app.method.backbone import ImageTextScore


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        name: Name of its module, and the part before the colon of EXEMPLAR_BACKBONE.
        models: Name of the models for readers.
        source: Example of the part after the colon; empty if none is needed.
        attention: Attention that is read for the patches of a prompt.
        image_text_score: Source of the image-text score.
        tuned: Parameters that one example may change, besides the embedding rows of its tokens.
        parameters_m: Parameters of the example model, in millions.
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
        """Example value of EXEMPLAR_BACKBONE."""
        return f"{self.name}:{self.source}" if self.source else self.name
