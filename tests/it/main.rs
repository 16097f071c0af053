//! Scenarios on real parts, each file named as a sentence. One binary: every further one would link everything again.

mod a_breaker_opens_and_pages_the_operator;
mod a_contract_is_not_what_it_was;
mod a_final_block_is_never_taken_back;
mod a_host_waits_for_the_depth_it_asks;
#[cfg(feature = "aws")]
mod a_host_whose_key_aws_keeps;
mod a_job_given_up_is_taken_by_another;
mod a_node_that_cannot_work_refuses_to_start;
mod a_node_that_is_told_to_stop_finishes_what_it_has;
mod a_pause_meets_a_pending_claim;
mod a_payment_that_the_token_refused_is_withdrawn_later;
mod a_renter_finds_a_host_of_its_region;
mod a_reorg_gives_a_number_to_another_order;
mod a_smart_account_rents;
mod a_sweep_finds_what_no_log_told;
mod an_endpoint_fails_and_another_takes_over;
mod an_endpoint_that_hides_logs_is_found_out;
mod an_export_is_checked_by_anyone;
mod an_operator_pauses_drains_and_resumes;
mod architecture;
mod audit_finds_a_tampered_row;
mod claim_lost_to_a_rival;
mod container;
mod deadline_passes_while_proving;
mod each_wrong_proof_is_refused_on_chain;
#[cfg(debug_assertions)]
mod failpoints;
mod faults;
mod forged_receipt_is_dropped_and_not_forwarded;
mod happy_path_in_eth_and_in_a_token;
mod one_proof_completes_four_jobs;
mod policy_is_explained_and_replayed;
mod reorg_takes_the_claim_away_and_gives_it_back;
mod restart_between_inference_and_proof;
mod restart_between_sign_and_send;
mod rpc_gone_for_a_minute;
mod systemd_runs_the_unit_of_the_readme;
mod the_arbiter_decides_a_dispute;
mod the_program_keeps_its_promises;
mod what_is_stuck_is_outbid_cancelled_or_told;
mod world;
