// node-redis 4 (RESP2) and 6 (RESP3): promises, camelCase names, options by command in 4 and by type in 6.
'use strict'

exports.open = async (redis, port, db, emitted) => {
  const client = redis.createClient({ socket: { host: '127.0.0.1', port }, database: db })
  for (const event of ['ready', 'end', 'reconnecting']) client.on(event, () => emitted(event))
  client.on('error', (error) => emitted(`error: ${error.message}`))
  await client.connect()

  const text = (args) => args.map((each) => (Buffer.isBuffer(each) ? each : String(each)))
  const getBytes = redis.RESP_TYPES
    ? (key) => client.withTypeMapping({ [redis.RESP_TYPES.BLOB_STRING]: Buffer }).get(key)
    : (key) => client.get(redis.commandOptions({ returnBuffers: true }), key)

  const received = []

  return {
    call: (...args) => client.sendCommand(text(args)),
    set: (key, value) => client.set(key, value),
    get: (key) => client.get(key),
    getBytes,
    mset: (pairs) => client.mSet(pairs),
    mget: (keys) => client.mGet(keys),
    del: (keys) => client.del(keys),
    hset: (key, fields) => client.hSet(key, fields),
    hgetall: (key) => client.hGetAll(key),
    // commands of one turn of the loop go out in one write
    pipeline: (calls) => Promise.all(calls.map((each) => client.sendCommand(text(each)).catch((error) => error))),
    multi: (calls) => calls.reduce((multi, each) => multi.addCommand(text(each)), client.multi()).exec(),
    scan: async (pattern) => {
      const keys = []
      for await (const some of client.scanIterator({ MATCH: pattern })) keys.push(...[some].flat()) // in 4 one by one
      return keys
    },
    eval: (script, keys, args) => client.eval(script, { keys, arguments: text(args) }),
    pop: async (key, seconds) => Object.values(await client.blPop(key, seconds)),
    publish: (channel, message) => client.publish(channel, message),
    subscribe: (channel) => client.subscribe(channel, (message, from) => received.push([from, message])),
    psubscribe: (pattern) => client.pSubscribe(pattern, (message, from) => received.push([pattern, from, message])),
    received: async () => received,
    select: async (number) => (await client.select(number)) || 'OK',
    info: () => client.info(),
    close: () => (client.close || client.disconnect).call(client),
  }
}
