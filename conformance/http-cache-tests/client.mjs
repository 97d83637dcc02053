// The tests of http-cache-tests against a base URL, results as JSON: node client.mjs URL
import fetch from 'node-fetch'
import { runTests, getResults } from 'http-cache-tests/client/runner.mjs'
import tests from 'http-cache-tests/tests/index.mjs'
import surrogate from 'http-cache-tests/tests/surrogate-control.mjs'

await runTests([...tests, surrogate], fetch, false, process.argv[2])
console.log(JSON.stringify(getResults()))
