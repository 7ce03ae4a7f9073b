-- Functions: keep the answer of a call for a while, for the same call sent again because its answer was lost.

-- key: of the receipt, which no other call has. Returns the answer; nil if the call was not carried out yet.
local function answer_kept(key)
  return redis.call('GET', key) or nil
end

-- Keeps the answer of a call that was carried out, and returns it. ttl_s: seconds.
local function keep_answer(key, answer, ttl_s)
  redis.call('SET', key, answer, 'EX', ttl_s)
  return answer
end
