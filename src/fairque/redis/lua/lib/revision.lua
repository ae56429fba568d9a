-- What governs all users (the policy of everybody, limits that are not of one user, pauses of tasks) is the same in each
-- partition of a queue, and has a revision: changes are numbered by the first partition, and each other one takes those it
-- lacks, in their order, before it serves. `revision` of the state. Of a call: 0, it is about a user, or the queue has no
-- partitions; -1: this is the first partition, which numbers it; else the number that the first one gave it.
--@include base

local function known_revision() return tonumber(call('HGET', state_key, 'revision') or 0) end

-- Whether what the call brings is not the next change: it is known, or others come before it.
local function follows(revision) return revision > 0 and known_revision() ~= revision - 1 end

local function note_revision(revision, has_changed)
  if revision > 0 or (revision < 0 and has_changed) then call('HINCRBY', state_key, 'revision', 1) end
end
