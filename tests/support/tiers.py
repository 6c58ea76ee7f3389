"""Tests that are too long for the quick tier, by module. tests/conftest.py marks them `integration`."""

ALL = ("*",)
INTEGRATION = {
    "experiments/test_comparison": ("configurations_have_the_arms_of_the_results",),
    "experiments/test_credit_quality": ("study_on_four_prompts",),
    "experiments/test_gradients": ("study_on_four_batches",),
    "test_bad_gradients": (
        "a_skipped_step_leaves_no_trace",
        "every_kind_of_loss_recovers",
        "fewer_in_a_row_do_not_stop_the_run",
        "resuming_between_skipped_steps_is_bit_identical",
        "several_in_a_row_stop_the_run_with_a_checkpoint",
        "teacher_weights_after_a_skipped_step",
        "weights_and_optimizer_state_are_those_before_the_skipped_steps",
    ),
    "test_bad_rewards": (
        "a_checkpoint_of_the_same_step_is_not_overwritten",
        "a_run_whose_reward_function_raises_saves_a_checkpoint",
        "an_unscored_rollout_has_no_advantage",
    ),
    "test_benchmarks": ("every_part_for_a_gpu_runs_in_a_rehearsal",),
    "test_cepo_additive": (
        "a_real_step_with_a_group_without_correct_rollouts",
        "groups_without_variance_are_learned_from",
    ),
    "test_cli": (
        "a_model_neither_here_nor_in_the_cache",
        "accuracy_of_adapters_is_measured",
        "ctrl_c_saves_a_checkpoint_that_can_be_resumed",
        "explain_reports_groups_without_advantages",
    ),
    "test_comparison": (
        "a_dry_run_lists_the_arms_and_writes_nothing",
        "a_folder_in_use_is_refused",
        "an_arms_preset_overrides_the_base_and_its_options_override_both",
        "arms_from_file_and_flags_and_their_differences",
        "unequal_budgets_and_a_missing_reference_are_noted",
    ),
    "test_distillation": (
        "a_teacher_synced_at_every_step_is_the_policy",
        "an_initial_teacher_changes_the_update",
        "micro_batches_add_up",
        "teacher_weights_after_resuming",
    ),
    "test_distilled_rl": ("explain_loads_the_other_model", "the_policy_as_its_own_teacher_is_grpo"),
    "test_evaluation": ("processes_together_return_what_one_returns",),
    "test_evidence_statistics": (
        "explain_statistics_of_a_custom_dataset",
        "explain_statistics_without_r_minus_and_without_groups",
    ),
    "test_examples": (
        "a_new_method_is_thirty_lines_and_runs_by_its_import_path",
        "custom_data_reward_and_extractor",
        "grpo_to_cepo_changes_three_lines",
        "notebook_runs_with_the_committed_outputs",
        "own_loop_takes_any_method",
        "text_example",
        "vision_language_example",
    ),
    "test_image_files": ("training_sees_the_page",),
    "test_image_lists": ("training_runs_each_distinct_prompt_once",),
    "test_kill": ("killed_at_a_place",),
    "test_loggers": ("trackio_holds_metrics_the_page_and_trls_table", "wandb_holds_metrics_the_page_and_trls_table"),
    "test_odd_batches": (
        "a_step_in_bfloat16",
        "completions_of_the_end_token_alone",
        "equal_contexts_have_no_evidence_in_bfloat16",
        "no_answer_is_extracted",
        "non_finite_log_probs_in_training",
        "truncated_completions_are_masked",
    ),
    "test_processes": ("two_processes_are_one",),
    "test_progress": (
        "a_run_on_a_terminal",
        "ctrl_c_on_a_terminal",
        "lines_between_tables_of_completions",
    ),
    "test_resume": (
        "a_failed_save_keeps_the_checkpoint_before",
        "a_resumed_run_is_bit_identical",
        "adapters_are_trained_on",
        "folders_that_are_removed_during_the_run",
        "sigterm_saves_and_ends_the_run",
    ),
    "test_resume_options": (
        "the_size_of_micro_batches_may_change",
        "a_checkpoint_without_options",
        "a_longer_run_follows_the_schedule_of_its_length",
        "adapters_of_another_rank",
        "rollouts_of_another_layout_are_sampled_anew",
        "the_shipped_policy_elsewhere_is_the_same",
        "other_options_are_applied",
    ),
    "test_rlcsd": ("a_group_with_one_correct_rollout",),
    "test_served": ("distillation_is_corrected", "token_advantages_are_corrected"),
    "test_shared_update": (
        "several_threads_give_the_same_gradient_each_time",
        "shared_prompts_sample_the_same_tokens",
        "steps_equal_those_of_whole_rows",
    ),
    "test_suite": ("ctrl_c_terminates_lmms_eval_and_the_same_command_resumes",),
    "test_token_advantages": ("no_token_runs_twice", "student_log_probs_are_known_before_the_loss"),
    "test_trainer": (
        "every_loss_of_trl_takes_token_advantages",
        "every_method_trains_on_the_default_task",
        "health_warnings_appear_once",
        "skipped_rows_do_not_change_the_gradient",
        "skipping_rows_gives_the_same_weights",
        "without_an_incorrect_answer",
    ),
    "test_trl_option_steps": (
        "a_distillation",
        "the_auxiliary_loss_of_a_router",
        "a_step_with_evidence",
        "cepo_with_equal_references_is_trls_trainer",
        "max_tool_calling_iterations",
        "continuous_batching",
    ),
    "test_untrusted_text": ("training_with_an_image_token_as_answer",),
    "test_verdicts": (
        "clipped_completions_are_counted",
        "prompt_learning_adapters_are_refused",
        "rows_with_and_without_images_are_refused_before_training",
        "warning_if_all_completions_are_clipped",
    ),
    "test_vppo": ("a_batch_without_correct_rollouts_still_learns", "a_real_step_with_errors_from_the_task"),
    "test_without_fast": ALL,
}
# Tests of the above that stay in the quick tier.
QUICK = {
    "test_kill": ("killed_at_a_place[cepo-saved weights-2]",),
    "test_resume": ("a_resumed_run_is_bit_identical[1]",),
    "test_served": ("token_advantages_are_corrected[cepo-token_truncate]",),
    "test_shared_update": ("steps_equal_those_of_whole_rows[cepo]", "steps_equal_those_of_whole_rows[opsd]"),
    "test_token_advantages": ("student_log_probs_are_known_before_the_loss[cepo]",),
    "test_trainer": ("every_loss_of_trl_takes_token_advantages[dapo]",),
}


def is_integration(module: str, name: str) -> bool:
    """Whether a test is in the integration tier; `name` with its parameters."""
    long = INTEGRATION.get(module, ())
    plain = name.removeprefix("test_")
    return (long == ALL or plain.partition("[")[0] in long) and plain not in QUICK.get(module, ())
