// ioredis 5 (RESP2) and 6 (RESP3): promises, lower-case names; it is ready when INFO says that nothing is loading.
'use strict'

exports.open = async (Redis, port, db, emitted) => {
  const client = new Redis({ host: '127.0.0.1', port, db })
  for (const event of ['ready', 'end', 'reconnecting']) client.on(event, () => emitted(event))
  client.on('error', (error) => emitted(`error: ${error.message}`))
  await new Promise((resolve, reject) => client.once('ready', resolve).once('end', () => reject(new Error('ended'))))

  const received = []
  client.on('message', (channel, message) => received.push([channel, message]))
  client.on('pmessage', (pattern, channel, message) => received.push([pattern, channel, message]))

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
    multi: async (calls) => (await client.multi(calls).exec()).map(([error, reply]) => error || reply),
    scan: async (pattern) => {
      const keys = []
      for await (const some of client.scanStream({ match: pattern })) keys.push(...some)
      return keys
    },
    eval: (script, keys, args) => client.eval(script, keys.length, ...keys, ...args),
    pop: (key, seconds) => client.blpop(key, seconds),
    publish: (channel, message) => client.publish(channel, message),
    subscribe: (channel) => client.subscribe(channel),
    psubscribe: (pattern) => client.psubscribe(pattern),
    received: async () => received,
    select: (number) => client.select(number),
    info: () => client.info(),
    close: async () => client.disconnect(),
  }
}
