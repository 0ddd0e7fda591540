#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tests/kernels/test_cuda_census.sh - what the compiler made of the kernels that matter, with no GPU and
# no disassembler: none may spill registers, and each must hold the instructions its speed rests on.
# An instruction is 16 bytes; the low 12 bits say which (seen in the assembler's output: HMMA 0x23c,
# F2FP 0x23e, LDGSTS 0xfae, LDSM 0x83b, HGMMA 0x9f0 with both operands in shared memory and 0xdf0, QGMMA
# 0x9f3, UTMALDG 0x5b4). Skipped only where nvcc is not.
# shellcheck source=tests/script.sh
source "$1/tests/script.sh"
nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null) || { echo "skipped: no nvcc" && exit 77; }
command -v readelf >/dev/null || { echo "skipped: no readelf" && exit 77; }

# census CUBIN: a line a kernel: name HMMA F2FP LDGSTS LDSM HGMMA QGMMA UTMALDG
census() {
    readelf -SW "$1" 2>/dev/null | sed -n 's/^ *\[ *[0-9]*\] \.text\.\([^ ]*\) *PROGBITS *[0-9a-f]* \([0-9a-f]*\) \([0-9a-f]*\) .*/\1 \2 \3/p' |
        while read -r name offset size; do
            od -An -v -tx8 -w16 -j $((16#$offset)) -N $((16#$size)) "$1" | awk -v name="$name" '
                { op[substr($1, 14, 3)]++ }
                END { print name, op["23c"] + 0, op["23e"] + 0, op["fae"] + 0, op["83b"] + 0,
                      op["9f0"] + op["df0"], op["9f3"] + 0, op["5b4"] + 0 }'
        done
}

# wants PATTERN OPCODE=LEAST...: every kernel whose name has PATTERN holds so many; there is one.
wants() {
    local pattern=$1 name hmma f2fp ldgsts ldsm hgmma qgmma utmaldg n=0 op name_of
    shift
    while read -r name hmma f2fp ldgsts ldsm hgmma qgmma utmaldg; do
        [[ $name =~ $pattern ]] || continue
        n=$((n + 1))
        for op in "$@"; do
            name_of=${op%=*}
            [ "${!name_of}" -ge "${op#*=}" ] || fail "$arch $file: ${!name_of} $op in $name"
        done
    done <"$scratch/census"
    [ $n -gt 0 ] || fail "$arch $file: no kernel is called like $pattern"
}

for arch in sm_90a sm_89 sm_80; do
    for file in skinny attend_decode attend_prefill sample sample_cluster rmsnorm attend_prefill_sm90 skinny_wgmma; do
        case $file in attend_prefill_sm90 | skinny_wgmma) [ $arch = sm_90a ] || continue ;; esac
        cubin=$scratch/$file.cubin
        nice timeout 150 "$nvcc" -O3 -std=c++17 -arch=$arch -cubin -Xptxas -v -I "$source_dir" \
            -I "$source_dir/include" -o "$cubin" "$source_dir/kernels/cuda/$file.cu" \
            >"$scratch/ptxas" 2>&1 || { cat "$scratch/ptxas" && fail "$file.cu for $arch" && continue; }
        # The line after a kernel's name: "0 bytes stack frame, 0 bytes spill stores, ...".
        grep -B1 "spill stores" "$scratch/ptxas" | grep -v ", 0 bytes spill stores, 0 bytes spill loads" |
            grep "spill stores" && fail "$arch $file.cu spills"
        n=$(grep -c "spill stores" "$scratch/ptxas")
        [ "$n" -gt 0 ] || fail "$arch $file.cu: the assembler reports no kernel"
        census "$cubin" >"$scratch/census"
        echo "$arch $file: $n kernels, $(awk '{ h += $2; f += $3; g += $4; l += $5; w += $6 }
            END { print h " HMMA, " f " F2FP, " g " LDGSTS, " l " LDSM, " w " HGMMA" }' "$scratch/census")"
        [ -z "${LL_TEST_VERBOSE:-}" ] || cat "$scratch/census"
        case $file in
        skinny)
            wants 'skinny_kernel' hmma=4 ldgsts=8
            [ $arch = sm_80 ] || wants 'skinny_kernelILb1' f2fp=32 # e4m3 pairs widened by one instruction
            ;;
        attend_prefill_sm90)
            wants '_kernelILi' hgmma=36
            wants '_kernelILi.*ELb0' utmaldg=2
            ! grep -o "wgmma.mma_async instructions are serialized.*" "$scratch/ptxas" ||
                fail "$arch $file.cu: the compiler lets no two products overlap"
            ;;
        skinny_wgmma)
            wants 'product_kernelILb1' qgmma=4 utmaldg=4
            wants 'product_kernelILb0' hgmma=4 utmaldg=4
            ! grep -o "wgmma.mma_async instructions are serialized.*" "$scratch/ptxas" ||
                fail "$arch $file.cu: the compiler lets no two products overlap"
            ;;
        attend_decode)
            wants '_kernelILi' hmma=16 ldgsts=8 ldsm=8
            [ $arch = sm_80 ] || wants 'decode_kernelILi[0-9]*ELb1' f2fp=128
            ;;
        attend_*) wants '_kernelILi' hmma=16 ldgsts=8 ldsm=8 ;;
        esac
    done
done
finish
