"""Reading machine code as nvdisasm prints it."""

import pytest

from numba_kernels.cuda.sass import Instruction, find_loops, read_sass

TEXT = """
.text.kernel:
        /*0000*/                   S2R R0, SR_TID.X ;                      /* 0x0000 */
                                                                           /* 0x0011 */
        /*0010*/              @!P0 BRA `(.L_x_2) ;
.L_x_0:
        /*0020*/                   LDG.E.NA.LTC128B.128.CONSTANT R4, desc[UR6][R2.64+0x40] ;
.L_x_1:
        /*0030*/                   DADD R8, R4, 1.5 ;
        /*0040*/               @P1 BRA `(.L_x_1) ;
        /*0050*/              @!P2 BRA P1, `(.L_x_0) ;
.L_x_2:
        /*0060*/                   EXIT ;
.L_x_3:
        /*0070*/                   BRA `(.L_x_3);
"""


def test_instructions_have_their_predicate_operands_and_target() -> None:
    code = read_sass(TEXT)
    assert [i.address for i in code] == list(range(0, 0x80, 0x10))
    assert code[1] == Instruction(0x10, "BRA", "!P0", "`(.L_x_2)", target=0x60)
    assert code[2].has("LDG", "128")
    assert code[2].access_bytes == 16
    assert code[2].operands == "R4, desc[UR6][R2.64+0x40]"


def test_loops_are_found_from_the_branches_back_the_outer_before_the_inner() -> None:
    outer, inner = find_loops(read_sass(TEXT))
    assert (outer.begin, outer.end, len(outer.instructions)) == (0x20, 0x50, 4)
    assert (inner.begin, inner.end, len(inner.instructions)) == (0x30, 0x40, 2)


@pytest.mark.parametrize("opcode", ["DADD", "DFMA", "DSETP.GT.AND", "MUFU.RCP64H", "F2F.F64.F32", "I2F.F64"])
def test_arithmetic_in_float64_is_seen(opcode: str) -> None:
    assert Instruction(0, opcode).is_float64
    assert not Instruction(0, "FADD.FTZ").is_float64


@pytest.mark.parametrize(
    ("opcode", "num_bytes"),
    [("LDG.E.128.CONSTANT", 16), ("STG.E.64", 8), ("LDG.E", 4), ("LDG.E.U16", 2), ("LDG.E.NA.LTC128B.CONSTANT", 4)],
)
def test_how_wide_an_access_is(opcode: str, num_bytes: int) -> None:
    assert Instruction(0, opcode).access_bytes == num_bytes


def test_a_text_without_a_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="no kernel"):
        read_sass("nvdisasm fatal   : no such file")
