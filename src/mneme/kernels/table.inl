// The table of one level, after all its kernels.
#pragma once

#include "mneme/kernels/attend.inl"
#include "mneme/kernels/attend_bf16.inl"
#include "mneme/kernels/attend_segments.inl"
#include "mneme/kernels/codec.inl"
#include "mneme/kernels/glu.inl"
#include "mneme/kernels/low_rank.inl"
#include "mneme/kernels/narrow.inl"
#include "mneme/kernels/norm.inl"
#include "mneme/kernels/observe.inl"
#include "mneme/kernels/quantized.inl"

#define MNEME_TEXT_OF(x) #x
#define MNEME_TEXT(x) MNEME_TEXT_OF(x)

namespace mneme::kernels::MNEME_LEVEL {

inline constexpr KernelTable kTable{
    MNEME_TEXT(MNEME_LEVEL),
    kLanes,
    {matvec_plain<PlainF32>, matvec_plain<PlainF16>, matvec_plain<PlainBf16>,
     matvec_packed<PackedQ8_0>, matvec_packed<PackedQ4_0>, matvec_packed<PackedQ4_1>},
    {matvec_plain<PlainF32>, matvec_plain<PlainF16>, matvec_plain<PlainBf16>,
     matvec_unpacked<unpack_q8_0<ToF32>, 34>, matvec_unpacked<unpack_q4_0<ToF32>, 18>,
     matvec_unpacked<unpack_q4_1<ToF32>, 20>},
    quantize_activations,
    {unpack_plain<PlainF32, ToF32>, unpack_plain<PlainF16, ToF32>, unpack_plain<PlainBf16, ToF32>,
     unpack_q8_0<ToF32>, unpack_q4_0<ToF32>, unpack_q4_1<ToF32>},
    {unpack_plain<PlainF32, ToBf16>, unpack_plain<PlainF16, ToBf16>,
     unpack_plain<PlainBf16, ToBf16>, unpack_q8_0<ToBf16>, unpack_q4_0<ToBf16>,
     unpack_q4_1<ToBf16>},
    {add_low_rank<PlainF32>, add_low_rank<PlainF16>, add_low_rank<PlainBf16>},
    {low_rank_inputs<PlainF32>, low_rank_inputs<PlainF16>, low_rank_inputs<PlainBf16>},
    {low_rank_merge<PlainF32>, low_rank_merge<PlainF16>, low_rank_merge<PlainBf16>},
    {low_rank_columns<PlainF32, ToF32>, low_rank_columns<PlainF16, ToF32>,
     low_rank_columns<PlainBf16, ToF32>},
    {low_rank_columns<PlainF32, ToBf16>, low_rank_columns<PlainF16, ToBf16>,
     low_rank_columns<PlainBf16, ToBf16>},
    position_range,
    kMostRows,
    kSingleRows,
    attend_scratch,
    attend,
#if defined(__AVX512BF16__)
    kGroups,
    attend_bf16_scratch,
    attend_bf16,
#else
    0,
    nullptr,
    nullptr,
#endif
    kObserveRows,
    observe_scratch,
    observe,
    rotate,
    encode_rows,
    encode_channels,
    decode_row,
    decode_channels,
    round_numbers,
    exp_all,
    rms_norm,
    silu_multiply_all,
    MNEME_NARROW_KERNELS,
    segment_scratch,
    attend_segment<SingleSteps>,
#if defined(__AVX512BF16__)
    attend_segment<PairSteps>,
#else
    nullptr,
#endif
    layer_norm,
};

}  // namespace mneme::kernels::MNEME_LEVEL
