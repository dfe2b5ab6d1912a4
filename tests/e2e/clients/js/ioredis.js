// ioredis 5 (RESP2) and 6 (RESP3): promises, lower-case names; it is ready when INFO says that nothing is loading.
'use strict'

exports.open = async (Redis, port, db, emitted) => {
  const client = new Redis({ host: '127.0.0.1', port, db })
  for (const event of ['ready', 'end', 'reconnecting']) client.on(event, () => emitted(event))
  client.on('error', (error) => emitted(`error: ${error.message}`))
  await new Promise((resolve, reject) => client.once('ready', resolve).once('end', () => reject(new Error('ended'))))

  return {
    call: (name, ...args) => client.call(name, ...args),
    set: (key, value) => client.set(key, value),
    get: (key) => client.get(key),
    getBytes: (key) => client.getBuffer(key),
    mset: (pairs) => client.mset(pairs),
    mget: (keys) => client.mget(keys),
    del: (keys) => client.del(keys),
    hset: (key, fields) => client.hset(key, fields),
    hgetall: (key) => client.hgetall(key),
    pipeline: async (calls) => (await client.pipeline(calls).exec()).map(([error, reply]) => error || reply),
    select: (number) => client.select(number),
    info: () => client.info(),
    close: async () => client.disconnect(),
  }
}
