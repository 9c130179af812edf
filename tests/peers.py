"""What transformers' common test suites check, by the names of their tests; names are facts, the tests here are ours.

They stand in tests/test_modeling_common.py, test_modeling_tf_common.py, test_modeling_flax_common.py,
test_image_processing_common.py and test_configuration_common.py of its release 4.57, and what a ViT's own files add.
`test_common_suite.py` has a test for each name, but for those that another file here covers or that do not apply.
"""

NAMES = {
    "tests/test_modeling_common.py": """
test_all_tensors_are_parameter_or_buffer test_attention_outputs test_attn_implementation_composite_models
test_batching_equivalence test_bc_torch_dtype test_can_be_initialized_on_meta test_can_init_all_missing_weights
test_can_load_ignoring_mismatched_shapes test_can_load_with_device_context_manager
test_can_load_with_global_device_set test_can_set_attention_dynamically test_can_use_safetensors
test_cannot_load_with_meta_device_context_manager test_causal_lm_can_accept_kwargs test_config
test_config_attn_implementation_setter test_correct_missing_keys test_cpu_offload test_custom_4d_attention_mask
test_determinism test_disk_offload_bin test_disk_offload_safetensors test_eager_matches_sdpa_inference
test_enable_input_require_grads test_enable_input_require_grads_with_gradient_checkpointing
test_feed_forward_chunking test_flash_attention_2_padding_matches_padding_free_with_position_ids
test_flash_attn_2_can_compile_with_attention_mask_None_without_graph_break
test_flash_attn_2_can_dispatch_composite_models test_flash_attn_2_fp32_ln test_flash_attn_2_from_config
test_flash_attn_2_inference_equivalence test_flash_attn_2_inference_equivalence_right_padding
test_flash_attn_3_can_dispatch_composite_models test_flash_attn_3_from_config
test_flash_attn_3_inference_equivalence test_flash_attn_3_inference_equivalence_right_padding
test_flash_attn_kernels_inference_equivalence test_flash_attn_kernels_mps_inference_equivalence
test_flex_attention_with_grads test_for_image_classification test_for_masked_image_modeling test_forward_signature
test_from_pretrained_no_checkpoint test_generation_tester_mixin_inheritance
test_gradient_checkpointing_backward_compatibility test_gradient_checkpointing_enable_disable
test_head_pruning test_head_pruning_integration test_head_pruning_save_load_from_config_init
test_head_pruning_save_load_from_pretrained test_headmasking test_hidden_states_output
test_inference_fp16 test_inference_image_classification_head test_inference_interpolate_pos_encoding
test_init_weights_can_init_buffers test_initialization test_inputs_embeds test_inputs_embeds_matches_input_ids
test_internal_model_config_and_subconfig_are_same test_keep_in_fp32_modules test_load_save_without_tied_weights
test_load_with_mismatched_shapes test_matched_shapes_have_loaded_weights_when_some_mismatched_shapes_exist
test_mismatched_shapes_have_properly_initialized_weights test_model test_model_base_model_prefix
test_model_from_pretrained test_model_get_set_embeddings test_model_is_small test_model_main_input_name
test_model_outputs_equivalence test_model_parallelism test_model_weights_reload_no_missing_tied_weights
test_multi_gpu_data_parallel_forward test_num_layers_is_small test_peft_gradient_checkpointing_enable_disable
test_problem_types test_resize_embeddings_untied test_resize_embeddings_untied_with_deepspeed
test_resize_embeddings_untied_with_deepspeed_multi_gpu test_resize_position_vector_embeddings
test_resize_tokens_embeddings test_resize_tokens_embeddings_with_deepspeed
test_resize_tokens_embeddings_with_deepspeed_multi_gpu test_retain_grad_hidden_states_attentions test_save_load
test_save_load_fast_init_from_base test_save_load_fast_init_to_base test_save_load_keys_to_ignore_on_save
test_save_load_low_cpu_mem_usage test_save_load_low_cpu_mem_usage_checkpoints
test_save_load_low_cpu_mem_usage_no_safetensors test_sdpa_can_compile_dynamic test_sdpa_can_dispatch_composite_models
test_sdpa_can_dispatch_non_composite_models test_sdpa_can_dispatch_on_flash test_sliding_window_mask
test_tied_weights_keys test_torch_compile_for_training test_torch_export test_torch_fx test_torch_fx_output_loss
test_torch_save_load test_torchscript_output_attentions test_torchscript_output_hidden_state test_torchscript_simple
test_training test_training_gradient_checkpointing test_training_gradient_checkpointing_use_reentrant
test_training_gradient_checkpointing_use_reentrant_false
""",
    "tests/test_modeling_tf_common.py": """
test_attention_outputs test_checkpoint_sharding_local test_compile_tf_model test_dataset_conversion test_determinism
test_for_image_classification test_forward_signature test_generate_with_headmasking test_graph_mode
test_graph_mode_with_inputs_embeds test_headmasking test_hidden_states_output test_inputs_embeds test_int_support
test_initialization test_int64_inputs test_keras_fit test_keras_save_load test_keyword_and_dict_args
test_lm_head_model_beam_search_generate_dict_outputs test_lm_head_model_no_beam_search_generate_dict_outputs
test_lm_head_model_random_beam_search_generate test_lm_head_model_random_no_beam_search_generate
test_load_with_mismatched_shapes test_loss_computation test_mixed_precision test_model test_model_common_attributes
test_model_main_input_name test_model_outputs_equivalence test_numpy_arrays_inputs test_onnx_compliancy
test_onnx_runtime_optimize test_prepare_serving_output test_pt_tf_model_equivalence test_resize_token_embeddings
test_save_load test_save_load_config test_saved_model_creation test_saved_model_creation_extended
test_train_pipeline_custom_model test_xla_fit test_xla_generate_contrastive test_xla_generate_fast
test_xla_generate_slow test_xla_mode
""",
    "tests/test_modeling_flax_common.py": """
test_attention_outputs test_beam_search_generate test_checkpoint_sharding_local test_default_params_dtype
test_equivalence_flax_to_pt test_equivalence_pt_to_flax test_for_image_classification test_forward_signature
test_from_pretrained_save_pretrained test_from_pretrained_with_no_automatic_init test_gradient_checkpointing
test_headmasking test_hidden_states_output test_jit_compilation test_load_with_mismatched_shapes test_model
test_model_main_input_name test_model_outputs_equivalence test_naming_convention test_no_automatic_init
test_save_load_bf16_to_base_pt test_save_load_from_base test_save_load_from_base_pt test_save_load_in_bf16
test_save_load_in_fp16 test_save_load_to_base test_save_load_to_base_pt test_to_bf16 test_to_fp16 test_to_fp32
""",
    "tests/test_image_processing_common.py": """
test_call_numpy test_call_numpy_4_channels test_call_pil test_call_pytorch test_can_compile_fast_image_processor
test_cast_dtype_device test_fast_image_processor_explicit_none_preserved test_fast_is_faster_than_slow
test_image_processor_from_and_save_pretrained test_image_processor_from_dict_with_kwargs
test_image_processor_preprocess_arguments test_image_processor_properties
test_image_processor_save_load_with_autoimageprocessor test_image_processor_to_json_file
test_image_processor_to_json_string test_init_without_params test_is_fast
test_new_models_require_fast_image_processor test_override_instance_attributes_does_not_affect_other_instances
test_processor_can_use_legacy_annotation_format test_save_load_fast_slow test_save_load_fast_slow_auto
test_slow_fast_equivalence test_slow_fast_equivalence_batched
""",
    "tests/test_configuration_common.py": """
create_and_test_config_common_properties create_and_test_config_from_and_save_pretrained
create_and_test_config_from_and_save_pretrained_composite create_and_test_config_from_and_save_pretrained_subfolder
create_and_test_config_to_json_file create_and_test_config_to_json_string create_and_test_config_with_num_labels
check_config_arguments_init check_config_can_be_init_without_params
""",
}  # fmt: skip
"""File of transformers -> the names of its tests of a model without text."""

PEERS = {name for names in NAMES.values() for name in names.split()}

NO_TEXT = "a vision model: it has no tokens of a vocabulary"
NO_MASK = "a vision model: no token is padding, so there is no attention mask"
NO_GENERATION = "nothing is generated"
FLASH = (
    "attn_implementation is 'sdpa', which takes a flash kernel where PyTorch has one, or 'eager'; no other is accepted"
)
ONE_DEVICE = "a model stands on one device; device_map of several is refused with what to do instead"
SIMPLE = "one configuration, with no other inside"
SCRIPTED = "torch.jit and torch.fx are superseded by torch.export, with which models are exported"
PRUNING = "heads are not pruned and not masked: the arguments are absent, and an unknown one is a TypeError"
UNTIED = "no two parameters are one"
NO_STATE = "weights are read from a checkpoint; a state dict is given to load_state_dict"

NOT_APPLICABLE = {
    **dict.fromkeys((
        "test_resize_embeddings_untied", "test_resize_embeddings_untied_with_deepspeed",
        "test_resize_embeddings_untied_with_deepspeed_multi_gpu", "test_resize_tokens_embeddings",
        "test_resize_tokens_embeddings_with_deepspeed", "test_resize_tokens_embeddings_with_deepspeed_multi_gpu",
        "test_resize_token_embeddings", "test_inputs_embeds", "test_inputs_embeds_matches_input_ids",
        "test_graph_mode_with_inputs_embeds", "test_causal_lm_can_accept_kwargs",
    ), NO_TEXT),
    **dict.fromkeys(("test_custom_4d_attention_mask", "test_sliding_window_mask"), NO_MASK),
    **dict.fromkeys((
        "test_generation_tester_mixin_inheritance", "test_generate_with_headmasking", "test_beam_search_generate",
        "test_lm_head_model_beam_search_generate_dict_outputs", "test_lm_head_model_random_beam_search_generate",
        "test_lm_head_model_no_beam_search_generate_dict_outputs",
        "test_lm_head_model_random_no_beam_search_generate", "test_xla_generate_contrastive",
        "test_xla_generate_fast", "test_xla_generate_slow",
    ), NO_GENERATION),
    **dict.fromkeys((
        "test_flash_attention_2_padding_matches_padding_free_with_position_ids", "test_flash_attn_2_fp32_ln",
        "test_flash_attn_2_can_compile_with_attention_mask_None_without_graph_break",
        "test_flash_attn_2_can_dispatch_composite_models", "test_flash_attn_2_from_config",
        "test_flash_attn_2_inference_equivalence", "test_flash_attn_2_inference_equivalence_right_padding",
        "test_flash_attn_3_can_dispatch_composite_models", "test_flash_attn_3_from_config",
        "test_flash_attn_3_inference_equivalence", "test_flash_attn_3_inference_equivalence_right_padding",
        "test_flash_attn_kernels_inference_equivalence", "test_flash_attn_kernels_mps_inference_equivalence",
        "test_flex_attention_with_grads", "test_sdpa_can_dispatch_on_flash",
    ), FLASH),
    **dict.fromkeys((
        "test_cpu_offload", "test_disk_offload_bin", "test_disk_offload_safetensors", "test_model_parallelism",
        "test_multi_gpu_data_parallel_forward",
    ), ONE_DEVICE),
    **dict.fromkeys((
        "test_attn_implementation_composite_models", "test_sdpa_can_dispatch_composite_models",
        "test_internal_model_config_and_subconfig_are_same",
        "create_and_test_config_from_and_save_pretrained_composite",
    ), SIMPLE),
    **dict.fromkeys((
        "test_torch_fx", "test_torch_fx_output_loss", "test_torchscript_output_attentions",
        "test_torchscript_output_hidden_state", "test_torchscript_simple",
    ), SCRIPTED),
    **dict.fromkeys((
        "test_head_pruning", "test_head_pruning_integration", "test_head_pruning_save_load_from_config_init",
        "test_head_pruning_save_load_from_pretrained", "test_headmasking",
    ), PRUNING),
    **dict.fromkeys((
        "test_tied_weights_keys", "test_load_save_without_tied_weights",
        "test_model_weights_reload_no_missing_tied_weights",
    ), UNTIED),
    "test_from_pretrained_no_checkpoint": NO_STATE,
    "test_save_load_keys_to_ignore_on_save": "every parameter is saved",
    "test_keep_in_fp32_modules": "every parameter has the dtype that is asked for",
    "test_gradient_checkpointing_backward_compatibility": "config.gradient_checkpointing of transformers 2 is no key",
    "test_resize_position_vector_embeddings": "image_size=... of from_pretrained resamples the positions",
    "test_init_weights_can_init_buffers": "what is computed is computed from the configuration, not initialised",
    "test_can_load_with_global_device_set": "device=... of from_pretrained says where, not a global state",
    "test_can_load_with_device_context_manager": "device=... of from_pretrained says where, not a global state",
    "test_onnx_compliancy": "ONNX is written by PyTorch; tests/clients has the test",
    "test_onnx_runtime_optimize": "ONNX is written by PyTorch; tests/clients has the test",
    "test_int_support": "pixels are floats; the image processor makes them",
    "test_no_automatic_init": "NNX: a model is its parameters, and nnx.eval_shape makes one without any",
    "test_from_pretrained_with_no_automatic_init": "loading draws no random weights; _do_init is without effect",
    "test_naming_convention": "NNX: no module stands behind the model",
    "test_default_params_dtype": "dtype is of parameters and computation",
    "test_image_processor_preprocess_arguments": "an unknown option is an error, not a warning",
    "test_new_models_require_fast_image_processor": "every image processor has its fast form",
    "test_processor_can_use_legacy_annotation_format": "no detection: there are no boxes to transform",
    "test_can_compile_fast_image_processor": "the fast processor resizes by Pillow's code, which is not traced",
    "test_fast_image_processor_explicit_none_preserved": "None means the default, and is an error where there is none",
    "check_config_arguments_init": "the arguments of a configuration are the keys of its class",
}  # fmt: skip
"""Name -> why it does not apply here."""

ELSEWHERE = {
    "test_torch_export": "tests/pt/test_compile.py::test_exports_with_a_free_batch_size_and_survives_saving",
    "test_torch_compile_for_training": "tests/pt/test_compile.py",
    "test_sdpa_can_compile_dynamic": "tests/pt/test_compile.py",
    "test_torch_save_load": "tests/test_torchfile.py",
    "test_checkpoint_sharding_local":
        "tests/test_checkpoint.py::test_shards_hold_at_most_the_given_size_unless_one_tensor_is_larger",
    "test_pt_tf_model_equivalence": "tests/test_equivalence.py",
    "test_equivalence_flax_to_pt": "tests/test_equivalence.py",
    "test_equivalence_pt_to_flax": "tests/test_equivalence.py",
    "test_inference_image_classification_head": "tests/test_transformers.py::test_recorded_outputs_are_reproduced",
    "test_inference_interpolate_pos_encoding": "tests/test_transformers.py::test_recorded_outputs_are_reproduced",
    "test_model_from_pretrained": "tests/test_hub.py",
    "test_enable_input_require_grads_with_gradient_checkpointing":
        "tests/clients/test_torch_clients.py::test_peft_trains_with_gradient_checkpointing",
    "test_save_load_low_cpu_mem_usage": "tests/test_keywords.py::test_keywords_that_change_nothing_are_taken",
    "test_save_load_low_cpu_mem_usage_checkpoints":
        "tests/test_keywords.py::test_keywords_that_change_nothing_are_taken",
    "test_save_load_low_cpu_mem_usage_no_safetensors":
        "tests/test_keywords.py::test_keywords_that_change_nothing_are_taken",
    "test_fast_is_faster_than_slow": "benchmarks/preprocess.py",
    "test_slow_fast_equivalence":
        "tests/test_image_processing_fast.py::test_the_two_processors_are_as_far_apart_as_documented",
    "test_dataset_conversion": "tests/tf",
}  # fmt: skip
"""Name -> the file, and where it is one test the test, that covers it."""
