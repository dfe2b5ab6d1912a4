// One client of one library, driven from outside: node driver.js ADAPTER LIBRARY PORT DB
//
// In comes a line of JSON for each step, ["set", "k", "v"]; out goes one for each, {"value": ...} or {"error": "..."}, in
// the same order, and first of all one for the connection. Bytes are {"base64": "..."} both ways. Two steps are the
// driver's own: ["events"] gives the events that the client has emitted, ["close"] ends it. It ends with its standard input.
'use strict'

const [adapter, library, port, db] = process.argv.slice(2)
const events = []

const say = (object) => process.stdout.write(JSON.stringify(object) + '\n')

function decode(value) {
  if (Array.isArray(value)) return value.map(decode)
  if (value === null || typeof value !== 'object') return value
  if (typeof value.base64 === 'string') return Buffer.from(value.base64, 'base64')
  return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, decode(each)]))
}

function encode(value) {
  if (value === undefined) return null
  if (Buffer.isBuffer(value)) return { base64: value.toString('base64') }
  if (value instanceof Error) return { error: value.message }
  if (value instanceof Map) return encode(Object.fromEntries(value))
  if (value instanceof Set || Array.isArray(value)) return Array.from(value, encode)
  if (value === null || typeof value !== 'object') return value
  return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, encode(each)]))
}

async function answer(step) {
  try {
    say({ value: encode(await step()) })
  } catch (error) {
    say({ error: String(error.message || error) })
  }
}

async function main() {
  const { open } = require(`./${adapter}.js`)
  let client
  await answer(async () => {
    client = await open(require(library), Number(port), Number(db), (event) => events.push(event))
  })
  const own = { events: async () => events }
  for await (const line of require('readline').createInterface({ input: process.stdin })) {
    const [name, ...args] = JSON.parse(line)
    await answer(() => (own[name] || client[name])(...args.map(decode)))
  }
  process.exit(0)
}

main()
