"""Where a step's time and memory go: every name has its part, floors are the derived ones, and counts hold."""

import re
from pathlib import Path

import pytest
import torch

import kernels
from bench import breakdown, inside, memory, steps, timing
from minilm.config import build
from minilm.training import graphs
from minilm.training.facts import estimate_memory

CPU = torch.device("cpu")
ANONYMOUS = "void at::native::(anonymous namespace)::"
ELEMENTWISE = "void at::native::vectorized_elementwise_kernel"
LAMBDA = "::{lambda()#2}::operator()() const::{lambda(c10::BFloat16)#1}"


# fmt: off
NAMES = [
    ("_forward_kernel", "attention forward"),
    ("_query_gradient_kernel", "attention backward"),
    ("_key_gradient_kernel", "attention backward"),
    ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64>>", "attention forward"),
    ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<64>", "attention backward"),
    ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_26", "attention backward"),
    ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7", "attention forward"),
    ("aten::_softmax_backward_data", "attention backward"),
    ("_norm_forward", "norm forward"),
    ("_norm_weight_grads", "norm backward"),
    ("_sum_partials", "norm backward"),
    ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16>", "norm forward"),
    ("void at::native::(anonymous namespace)::GammaBetaBackwardCUDAKernelTemplate<float>", "norm backward"),
    ("triton_red_fused_native_layer_norm_backward_7", "fused by the compiler"),
    ("_loss_and_dlogits", "loss"),
    ("_scale", "loss"),
    ("aten::_log_softmax_backward_data", "loss"),
    ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NTT", "matrix products"),
    ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "matrix products"),
    ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_128x128_32x4>", "matrix products"),
    ("aten::mm", "matrix products"),
    ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor<float, 4>>", "optimizer"),
    ("void at::native::vectorized_elementwise_kernel<4, GeluCUDAKernelImpl>", "activation"),
    ("_swiglu_backward", "activation"),
    ("triton_poi_fused_add_gelu_gelu_backward_view_3", "fused by the compiler"),
    ("triton_red_fused__to_copy_sum_8", "fused by the compiler"),
    ("triton_per_fused__log_softmax_nll_loss_forward_2", "fused by the compiler"),
    ("triton_tem_fused_addmm_5", "matrix products"),
    ("Memcpy HtoD (Pinned -> Device)", "copies and casts"),
    ("triton_poi_fused__to_copy_2", "fused by the compiler"),
    ("triton_per_fused_add_1", "fused by the compiler"),
    ("autograd::engine::evaluate_function: GeluBackward0", "autograd"),
    ("void at::native::vectorized_elementwise_kernel<4, CUDAFunctor_add>", "other"),
    # as CUDA 13 and PyTorch 2.11 spell them
    ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_bias_TNT", "matrix products"),
    ("nvjet_tst_64x64_64x13_4x1_v_bz_splitK_TNN", "matrix products"),
    ("void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16, float, __nv_bfloat16, false>",
     "matrix products"),
    ("void cublasLt::epilogue::impl::globalKernel<8, 32, __nv_bfloat16, __nv_bfloat16, float, true>",
     "matrix products"),
    ("std::enable_if<!(false), void>::type internal::gemvx::kernel<int, int, __nv_bfloat16, float>",
     "matrix products"),
    (f"{ELEMENTWISE}<4, at::native::GeluCUDAKernelImpl(at::TensorIteratorBase&, at::native::GeluType){LAMBDA}>",
     "activation"),
    (f"{ELEMENTWISE}<4, at::native::GeluBackwardCUDAKernelImpl(at::TensorIteratorBase&, "
     f"at::native::GeluType){LAMBDA}>",
     "activation"),
    (f"{ELEMENTWISE}<4, at::native::CUDAFunctor_add<c10::BFloat16>, std::array<char*, 3ul> >", "other"),
    (f"{ELEMENTWISE}<4, at::native::bfloat16_copy_kernel_cuda(at::TensorIteratorBase&){LAMBDA}>", "copies and casts"),
    ("void at::native::unrolled_elementwise_kernel<"
     f"at::native::direct_copy_kernel_cuda(at::TensorIteratorBase&){LAMBDA}>",
     "copies and casts"),
    (f"{ANONYMOUS}CatArrayBatchedCopy_contig<{ANONYMOUS}OpaqueType<4u>, unsigned int, 1, 128, 1>",
     "copies and casts"),
    ("Memcpy DtoD (Device -> Device)", "copies and casts"),
    ("Memset (Device)", "fills"),
    (f"{ELEMENTWISE}<4, at::native::FillFunctor<float>, std::array<char*, 1ul> >", "fills"),
    ("void at::native::reduce_kernel<128, 4, at::native::ReduceOp<c10::BFloat16, at::native::func_wrapper_t<"
     "c10::BFloat16, at::native::sum_functor<c10::BFloat16, float, "
     f"c10::BFloat16>::operator()(at::TensorIterator&){LAMBDA}>, unsigned int, c10::BFloat16, 4, 4> >",
     "bias gradients"),
    ("void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::NormTwoOps<float, float, "
     "float>, unsigned int, float, 4, 4> >",
     "optimizer"),
    ("void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::MeanOps<float, float, "
     "float, float>, unsigned int, float, 4, 4> >",
     "other"),
    (f"{ANONYMOUS}multi_tensor_apply_kernel<{ANONYMOUS}FusedOptimizerTensorListMetadata<4>, "
     f"{ANONYMOUS}FusedAdamMathFunctor<float, 4, (at::native::ADAM_MODE)1, false> >",
     "optimizer"),
    (f"{ANONYMOUS}multi_tensor_apply_kernel<{ANONYMOUS}TensorListMetadata<1>, {ANONYMOUS}LpNormFunctor<float, "
     "(at::native::NormType)1, float, 1, 1, 0> >",
     "optimizer"),
    ("void at::native::lpnorm_cleanup<float, (at::native::NormType)1, float, float>", "optimizer"),
    (f"{ANONYMOUS}vectorized_gather_kernel<16, long>", "embedding"),
    (f"{ANONYMOUS}embedding_backward_feature_kernel<float, float, long>", "embedding"),
    (f"{ANONYMOUS}compute_grad_weight<float, long>", "embedding"),
    (f"{ANONYMOUS}krn_partials_per_segment<long>", "embedding"),
    (f"{ANONYMOUS}sum_and_scatter<float, long>", "embedding"),
    ("void cub::_V_300200_SM_900::detail::radix_sort::DeviceRadixSortOnesweepKernel<Policy1000, false, long>",
     "embedding"),
    (f"{ANONYMOUS}fused_dropout_kernel_vec<c10::BFloat16, float, 1u, 4, 1, bool>", "dropout"),
    (f"{ELEMENTWISE}<4, {ANONYMOUS}masked_scale_kernel<bool, c10::BFloat16, float>{LAMBDA}>", "dropout"),
    (f"{ANONYMOUS}distribution_elementwise_grid_stride_kernel<unsigned long, 2, random_from_to>", "dropout"),
    ("void (anonymous namespace)::softmax_warp_forward<c10::BFloat16, c10::BFloat16, float, 8, false, false>",
     "attention forward"),
    ("void (anonymous namespace)::softmax_warp_backward<c10::BFloat16, c10::BFloat16, float, 8, false, false>",
     "attention backward"),
    ("void (anonymous namespace)::softmax_warp_forward<float, float, float, 7, true, false>", "loss"),
    ("void at::native::(anonymous namespace)::cunn_SoftMaxForward<4, float, float, float, "
     f"{ANONYMOUS}LogSoftMaxForwardEpilogue>",
     "loss"),
    ("void at::native::(anonymous namespace)::nll_loss_forward_reduce_cuda_kernel_2d<float, float, long>", "loss"),
    (f"{ANONYMOUS}layer_norm_grad_input_kernel_vectorized<float, float>", "norm backward"),
    (f"{ANONYMOUS}RowwiseMomentsCUDAKernel<float, float>", "norm forward"),
    ("void pytorch_flash::flash_bwd_convert_dq_kernel<Flash_bwd_kernel_traits<64>>", "attention backward"),
    ("fmha_cutlassB_bf16_aligned_64x64_k64_sm80(PyTorchMemEffAttention::AttentionBackwardKernel)",
     "attention backward"),
    ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel)", "attention forward"),
]
# fmt: on


@pytest.mark.parametrize(("name", "part"), NAMES)
def test_every_name_has_its_part(name, part):
    assert breakdown.part_of(name) == part


def test_no_kernel_of_ours_in_training_is_left_over():
    sources = Path(kernels.__file__).parent.glob("fused/*.py")
    launched = {name for path in sources for name in re.findall(r"^ +(_\w+)\[\(", path.read_text(), re.MULTILINE)}
    assert len(launched) > 9
    assert {name for name in launched if breakdown.part_of(name) == breakdown.OTHER} == {
        "_decode_kernel",
        "_merge_kernel",
    }


def test_the_calls_that_launch_something_are_told_from_those_that_do_not():
    for name in ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch",
                 "cudaMemcpyAsync", "cudaMemsetAsync"):  # fmt: skip
        assert re.match(breakdown.LAUNCH, name), name
    for name in ("cudaStreamSynchronize", "cudaEventRecord", "cudaOccupancyMaxActiveBlocksPerMultiprocessor"):
        assert not re.match(breakdown.LAUNCH, name), name


def test_the_floors_of_the_capstone_are_those_that_were_derived():
    """16,384 tokens on an H100 at 798 TFLOP/s and 3.0 TB/s, in ms, each line added up by hand from its reads and
    writes: 8 layers of products 0.26 + 0.09 + 0.34 + 0.34 and 2.07 back, and so on, 5.5 in all."""
    config = steps.config_of("capstone", 256, 64, CPU)
    found = {part: 1e3 * s for part, s in breakdown.floors(config, torch.bfloat16, 798e12, 3.0e12).items()}
    derived = {"attention forward": 0.18, "attention backward": 0.36, "norm forward": 0.36, "norm backward": 0.36}
    derived |= {"matrix products": 3.10, "activation": 0.90, "optimizer": 0.23, "copies and casts": 0.05}
    for part, milliseconds in derived.items():
        assert found[part] == pytest.approx(milliseconds, abs=0.006 + 0.01 * milliseconds), part
    assert sum(found.values()) == pytest.approx(5.5 + found["loss"], abs=0.1)  # they left out the head and its loss


def test_a_gated_activation_reads_and_writes_twice_as_much_on_one_side():
    """SwiGLU: two in, one out, and back three in, two out; GELU: one in, one out, and back two in, one out."""
    plain, gated = (
        breakdown.floors(build("tiny", {"model": {"vocab_size": 9, "d_ff": 64, "activation": a}}), torch.bfloat16, 1, 1)
        for a in ("gelu", "swiglu")
    )
    assert gated["activation"] == pytest.approx(plain["activation"] * 8 / 5)


def test_the_parts_of_a_step_are_what_it_takes():
    whole, parts = breakdown.measure("tiny", 32, 8, steps.Entry("torch", "off"), CPU, (1e11, 1e10))
    by_name = {part.part: part for part in parts}
    assert [part.seconds for part in parts] == sorted((part.seconds for part in parts), reverse=True)
    for name in ("matrix products", "norm forward", "norm backward", "activation", "optimizer", "loss", "embedding"):
        assert by_name[name].seconds > 0 and by_name[name].calls >= 1, name
    assert by_name["matrix products"].names[0][0] in ("aten::mm", "aten::addmm")
    assert whole.step_s > by_name["matrix products"].seconds and (whole.host_s, whole.launches) == (None, None)
    assert by_name["bias gradients"].names[0][0] == "aten::sum"
    found = breakdown.rows(whole, parts, "tiny", (32, 8), steps.Entry("torch", "off"))
    ((title, _, rows),) = inside.time_tables(found)
    assert title.startswith("Where the time of a step goes: tiny, 32 x 8, torch eager, ") and len(rows) == len(parts)
    found = breakdown.rows(breakdown.Whole(0.01, 0.004, 312.0), parts, "tiny", (32, 8), steps.Entry("torch", "off"))
    assert next(inside.time_tables(found))[0].endswith("10 ms by the clock, 312 launches in 4 ms of the host")


def test_memory_by_part_adds_up_to_the_estimate_and_the_fused_kernels_keep_less():
    found = memory.parts("tiny", torch.float32)
    totals = {}
    for row in found:
        key = row["kernels"], row["checkpoint_activations"]
        totals[key] = totals.get(key, 0) + row["bytes"]
    assert set(totals) == set(memory.ways())
    for name in ("reference", "torch"):
        for again in (False, True):
            changes = {"model": {"vocab_size": steps.VOCABULARY}, "train": {"checkpoint_activations": again}}
            config = build("tiny", changes)
            assert totals[name, again] == estimate_memory(config, kernels.select(name), torch.float32, torch.float32)
    assert totals["triton", False] < totals["reference", False] and totals["torch", True] < totals["torch", False]


def test_the_two_commands_print_their_tables(capsys, monkeypatch):
    in_turn = timing.in_turn
    monkeypatch.setattr(timing, "in_turn", lambda calls, device, seconds, **how: in_turn(calls, device, 0.05, **how))
    assert memory.main(["--preset", "tiny", "--gigabytes", "0.1", "--dtype", "float32"]) == 0
    said = capsys.readouterr().out
    assert "MLP" in said and "one sequence in 0.1 GiB" in said and "computed again" in said
    assert breakdown.main(["--preset", "tiny", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "tiny, 32 x 8, torch eager" in said and "matrix products" in said and "by the clock" in said
    assert breakdown.main(["--preset", "tiny", "--device", "cuda:99"]) == 2
    assert "cuda:99" in capsys.readouterr().err
    graphs = ["--compile", "graphs"], "one GPU"
    for wrong, said in ((["--kernels", "triton"], "--kernels triton cannot run"), graphs):
        assert breakdown.main(["--preset", "tiny", "--device", "cpu", *wrong]) == 2
        assert said in capsys.readouterr().err
    for gigabytes in ("0", "-3"):
        with pytest.raises(SystemExit) as ended:
            memory.main(["--gigabytes", gigabytes])
        assert ended.value.code == 2


def test_the_longest_context_fits_and_a_longer_one_does_not():
    budget = 64 * 2**20
    found = {
        (row["kernels"], row["checkpoint_activations"]): row["context_length"]
        for row in memory.longest("tiny", budget, CPU, torch.float32)
    }
    for (name, again), T in found.items():
        need = [
            sum(memory.counted(memory.at("tiny", length, 1, again, CPU), name, torch.float32).values())
            for length in (T, T + max(2, T // 50))
        ]
        assert need[0] <= budget < need[1]
    assert found["torch", False] > 4 * found["reference", False]
    none = memory.longest("tiny", 2**20, CPU, torch.float32)
    assert {row["context_length"] for row in none} == {None}
    assert found["torch", True] > found["torch", False]


def test_the_memory_of_a_captured_update_is_what_is_held_once_the_graph_is_there(monkeypatch):
    """An eager update's peak would not have the graph's pool in it."""
    made = []
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 100 + 1000 * (len(made) > graphs.EAGER_UPDATES))
    assert steps._with_graph(lambda: made.append("update"), CPU, 100) == 1000
