import numpy as np
from jaxtyping import Float

def conv_crf(
    class_map: Float[np.ndarray, "class height width"],
    colours: Float[np.ndarray, "3 height width"],
    refined: Float[np.ndarray, "class height width"],
    shape: tuple[int, ...],
    parameters: tuple[int, int, int, float, float, float, float, float],
    threads: int,
) -> None:
    """Compute `app.method.crf.conv_crf` of float32 arrays without gaps; other Python threads run meanwhile.

    Args:
        class_map: Probabilities.
        colours: The image.
        refined: Zeros, over which the result is written.
        shape: That of `class_map`.
        parameters: The fields of `CrfParameters`, in their order.
        threads: Number of threads to compute with.

    Raises:
        ValueError: If the arrays do not have this shape.
        MemoryError: If there is not enough memory.
    """
