"""The plainest geometry: no padding but up to whole cells."""

from fcnseg.geometry import AxisGeometry


def plain_axis(stride: int, offset: float) -> AxisGeometry:
    return AxisGeometry(
        stride=stride,
        offset=offset,
        field=9,
        alignment=stride,
        minimum=stride,
        lead=0,
        trail=0,
        extra_cells=0,
        margin=0,
    )
