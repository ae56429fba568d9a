-- All checks of a queue, by name. `request` is a `Check`; returns the reply of check.lua.
--@include base
--@include doctor
--@include check_keys
--@include check_tasks
--@include check_users
--@include check_links
--@include check_names
--@include check_schedules
--@include check_values
--@include check_bytes
--@include check_batches
--@include check_state

local function check_items(request, repairs)
  --@fields Check request
  local doctor = new_doctor(repairs)
  add_key_checks(doctor, dead_letter_ttl_ms)
  add_task_checks(doctor, dead_letter_ttl_ms, priority_step_ms)
  add_byte_checks(doctor)
  add_batch_checks(doctor, priority_step_ms * 1000)
  add_user_checks(doctor)
  add_link_checks(doctor, dead_letter_ttl_ms)
  add_name_checks(doctor)
  add_schedule_checks(doctor, dead_letter_ttl_ms)
  add_value_checks(doctor)
  add_state_checks(doctor)
  return doctor.look_at(items)
end
