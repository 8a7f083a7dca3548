/**
 * Saves and loads the variables of a JavaScript context.
 *
 * Sent by the node with the request that needs it, so that no start pays for it, and run as a function of `tools`, what
 * the kernel has. No method of the user's is called to save: properties are read as they are, and proxies not at all.
 *
 * The file is one structured clone of a table. In it is every object once, so that what two variables share they share
 * afterwards. Functions and classes are in it by their source, as long as they close over nothing; modules by their
 * names. An object of a class comes back by its prototype and its properties, which private fields are not.
 */
(function (tools) {
  'use strict';
  const { session, fetchValue, require, imported, ours, state } = tools;
  const fs = require('node:fs');
  const path = require('node:path');
  const util = require('node:util');
  const v8 = require('node:v8');
  const vm = require('node:vm');
  const { types } = util;
  const { getOwnPropertyDescriptor: describe, getPrototypeOf, setPrototypeOf, defineProperty } = Object;
  const sourceOf = Function.prototype.call.bind(Function.prototype.toString);

  const FORMAT = 1;
  const NAMES_LIMIT = 10_000;
  const LOST_LIMIT = 2_000;
  const NAME_LIMIT = 256;
  const REASON_LIMIT = 240;
  const TOO_LARGE = 'too large';
  const TOO_SLOW = 'no time was left for it';
  const INHERITED = ['Object', 'Array', 'Map', 'Set', 'Date', 'RegExp', 'Error', 'Function'];

  /** Why a variable cannot be saved. */
  class Lost extends Error {}

  function inWords(error) {
    let text = 'something that cannot be shown';
    try {
      text = error instanceof Lost ? error.message : error instanceof Error ? `${error.name}: ${error.message}` : `${error}`;
    } catch {
      // its own words fail
    }
    const line = text.replace(/\s+/g, ' ').trim();
    return line.length <= REASON_LIMIT ? line : `${line.slice(0, REASON_LIMIT)}…`;
  }

  function post(method, options) {
    let found;
    session.post(method, options, (failure, answer) => {
      found = failure ? { exceptionDetails: failure } : answer;
    });
    return found;
  }

  /** The user's names: those that `let`, `const` and `class` declare, and those of the global object. */
  function namesNow() {
    const lexical = post('Runtime.globalLexicalScopeNames', {}).names ?? [];
    const global = Object.keys(Object.getOwnPropertyDescriptors(globalThis)).filter((name) => !ours.has(name));
    return [...lexical.map((name) => [name, true]), ...global.map((name) => [name, false])];
  }

  function read(name, lexical) {
    if (!lexical) {
      const found = describe(globalThis, name);
      if (!found || !('value' in found)) throw new Lost('it is computed by a getter');
      return { kind: 'var', value: found.value };
    }
    const options = { expression: name, objectGroup: 'values' };
    const { result, exceptionDetails } = post('Runtime.evaluate', options);
    if (exceptionDetails) throw new Lost('it was declared and never given a value');
    const value = fetchValue(result);
    // which changes nothing where it is allowed
    const fixed = post('Runtime.evaluate', { ...options, expression: `${name} = ${name}` }).exceptionDetails;
    return { kind: fixed ? 'const' : 'let', value };
  }

  /** What everybody has under a name: objects of the language, and loaded modules with what is in them. */
  function namedThings() {
    const named = new Map();
    const add = (value, place) => {
      if (value !== null && /^(object|function)$/.test(typeof value) && !named.has(value)) named.set(value, place);
    };
    const addAll = (value, place) => {
      if (value === null || !/^(object|function)$/.test(typeof value) || types.isProxy(value)) return;
      for (const key of Reflect.ownKeys(value)) {
        const found = typeof key === 'string' ? describe(value, key) : undefined;
        if (found && 'value' in found) add(found.value, { ...place, keys: [...place.keys, key] });
      }
    };
    add(globalThis, { keys: [] });
    for (const name of ours) {
      const found = describe(globalThis, name);
      if (!found || !('value' in found) || name === '_' || name === 'module' || name === 'exports') continue;
      if (found.value === globalThis) continue; // in which the user's own names are
      add(found.value, { keys: [name] });
      addAll(found.value, { keys: [name] });
    }
    add(process, { keys: ['process'] });
    for (const entry of process.moduleLoadList) {
      const name = /^NativeModule ([^/_][\w/]*)$/.exec(entry)?.[1];
      if (!name || name.startsWith('internal/') || !require('node:module').isBuiltin(name)) continue;
      const place = { module: `node:${name}`, keys: [], native: true };
      add(require(name), place);
      addAll(require(name), place);
    }
    for (const [filename, { exports }] of Object.entries(require.cache)) {
      add(exports, { module: filename, keys: [] });
      addAll(exports, { module: filename, keys: [] });
    }
    for (const [namespace, { specifier, folder }] of imported) {
      const place = { specifier, folder, keys: [] };
      add(namespace, place);
      addAll(namespace, place);
    }
    return named;
  }

  /** Puts values into a table: each object once. */
  class Encoder {
    constructor(named, deadline) {
      this.named = named;
      this.deadline = deadline;
      this.table = [];
      this.known = new Map();
      this.waiting = [];
      this.size = 0;
    }

    /** A variable's value, with all that hangs on it; or nothing of it. */
    encode(value) {
      const { length } = this.table;
      const before = this.size;
      try {
        const reference = this.reference(value);
        for (let next = this.waiting.pop(); next; next = this.waiting.pop()) {
          if (Date.now() > this.deadline) throw new Lost(TOO_SLOW);
          next();
        }
        return { reference, size: this.size - before };
      } catch (error) {
        this.waiting = [];
        this.size = before;
        for (const [object, index] of this.known) if (index >= length) this.known.delete(object);
        this.table.length = length;
        throw error;
      }
    }

    /** How a table's entry names a value. */
    reference(value) {
      if (typeof value === 'symbol') return { symbol: this.indexOf(value) };
      if (value === null || (typeof value !== 'object' && typeof value !== 'function')) {
        this.size += typeof value === 'string' ? value.length + 8 : 8;
        return { value };
      }
      return { object: this.indexOf(value) };
    }

    indexOf(value) {
      const found = this.known.get(value);
      if (found !== undefined) return found;
      const index = this.table.length;
      this.known.set(value, index);
      this.table.push(null);
      this.size += 32;
      const entry = this.entry(value);
      this.table[index] = entry;
      return index;
    }

    entry(value) {
      if (typeof value === 'symbol') return this.symbol(value);
      const place = this.named.get(value);
      if (place) return { kind: 'named', ...place };
      if (types.isProxy(value)) throw new Lost('a proxy');
      if (typeof value === 'function') return this.ofFunction(value);
      const entry = this.ofObject(value);
      this.waiting.push(() => this.addProperties(entry, value));
      return entry;
    }

    symbol(value) {
      const wellKnown = Reflect.ownKeys(Symbol).find((key) => Symbol[key] === value);
      if (wellKnown) return { kind: 'symbol', wellKnown };
      const key = Symbol.keyFor(value);
      return key === undefined ? { kind: 'symbol', description: value.description } : { kind: 'symbol', key };
    }

    ofObject(value) {
      if (Array.isArray(value)) return { kind: 'Array', length: value.length };
      if (types.isMap(value)) {
        const entry = { kind: 'Map', items: [] };
        this.waiting.push(() => {
          const each = (item, key) => entry.items.push([this.reference(key), this.reference(item)]);
          Map.prototype.forEach.call(value, each);
        });
        return entry;
      }
      if (types.isSet(value)) {
        const entry = { kind: 'Set', items: [] };
        this.waiting.push(() => Set.prototype.forEach.call(value, (item) => entry.items.push(this.reference(item))));
        return entry;
      }
      if (types.isDate(value)) return { kind: 'Date', time: Date.prototype.getTime.call(value) };
      if (types.isRegExp(value)) {
        const [source, flags] = ['source', 'flags'].map((name) => Reflect.get(RegExp.prototype, name, value));
        return { kind: 'RegExp', source, flags };
      }
      if (types.isNativeError(value)) return { kind: 'Error' };
      if (types.isAnyArrayBuffer(value)) {
        if (types.isSharedArrayBuffer(value)) throw new Lost('memory that is shared with threads');
        this.size += value.byteLength;
        return { kind: 'ArrayBuffer', data: value };
      }
      if (ArrayBuffer.isView(value)) return this.ofView(value);
      if (value instanceof URL && getPrototypeOf(value) === URL.prototype) return { kind: 'URL', href: value.href };
      if (types.isPromise(value)) throw new Lost('a promise');
      if (types.isGeneratorObject(value)) throw new Lost('a running generator');
      const hidden = ['WeakMap', 'WeakSet', 'BoxedPrimitive', 'External', 'ModuleNamespaceObject', 'MapIterator', 'SetIterator'];
      const kind = hidden.find((name) => types[`is${name}`](value));
      if (kind) throw new Lost(`an object of the kind ${kind}`);
      return { kind: 'Object' };
    }

    ofView(value) {
      const kind = types.isDataView(value) ? 'DataView' : value[Symbol.toStringTag];
      const isBuffer = getPrototypeOf(value) === Buffer.prototype;
      const length = kind === 'DataView' ? value.byteLength : value.length;
      // a small Buffer is a part of a pool that it does not own
      const pooled = isBuffer && value.buffer.byteLength !== value.byteLength;
      const whole = pooled ? Uint8Array.prototype.slice.call(value).buffer : value.buffer;
      const buffer = this.reference(whole);
      return { kind: isBuffer ? 'Buffer' : kind, view: true, buffer, offset: pooled ? 0 : value.byteOffset, length };
    }

    ofFunction(value) {
      const source = sourceOf(value);
      if (/\{\s*\[native code\]\s*\}\s*$/.test(source)) throw new Lost('a function of the language that has no name');
      const closure = closureOf(value);
      if (closure) throw new Lost(`a function that closes over ${closure}`);
      const entry = { kind: 'Function', source };
      this.size += source.length;
      this.waiting.push(() => {
        const parent = getPrototypeOf(value);
        if (typeof parent === 'function' && !this.named.has(parent)) entry.parent = this.reference(parent);
        this.addOwn(entry, value, ['length', 'name', 'prototype', 'arguments', 'caller']);
        const found = describe(value, 'prototype');
        if (found && typeof found.value === 'object' && found.value !== null) {
          const prototype = { kind: 'prototype', of: this.reference(value) };
          entry.methods = { object: this.table.length };
          this.known.set(found.value, this.table.length);
          this.table.push(prototype);
          // those of a class are in its source
          if (!/^class\b/.test(source)) this.addOwn(prototype, found.value, ['constructor']);
        }
      });
      return entry;
    }

    addProperties(entry, value) {
      const parent = getPrototypeOf(value);
      if (parent === null) entry.prototype = null;
      else if (parent !== standardPrototype(entry.kind)) entry.prototype = this.prototype(parent);
      this.addOwn(entry, value, entry.kind === 'Array' ? ['length'] : []);
    }

    prototype(parent) {
      const maker = describe(parent, 'constructor')?.value;
      if (typeof maker === 'function' && describe(maker, 'prototype')?.value === parent) {
        const place = this.named.get(maker);
        if (place?.native) throw new Lost(`an object of Node's class ${maker.name}`);
        if (!place && /[{\s;(]#[\p{ID_Start}$_]/u.test(sourceOf(maker))) {
          throw new Lost(`an object of ${maker.name}, which has private fields`);
        }
        if (!place && sourceOf(maker).includes('[native code]')) throw new Lost(`an object of the class ${maker.name}`);
        const of = this.reference(maker);
        if (place && place.keys.length < 2 && !place.module && !place.specifier && !INHERITED.includes(maker.name)) {
          throw new Lost(`an object of the class ${maker.name}`);
        }
        return { of };
      }
      return this.reference(parent);
    }

    addOwn(entry, value, except) {
      if (ArrayBuffer.isView(value)) return;
      entry.own = [];
      if (!Object.isExtensible(value)) entry.frozen = Object.isFrozen(value) ? 'freeze' : 'preventExtensions';
      for (const key of Reflect.ownKeys(value)) {
        if (except.includes(key)) continue;
        const found = describe(value, key);
        if (!('value' in found)) {
          if (entry.kind === 'Function' || entry.kind === 'Error') continue; // of its source, or of the language
          throw new Lost(`it has a property ${String(key)} that is computed`);
        }
        const isMethod = entry.kind === 'Function' && typeof found.value === 'function' && !found.enumerable;
        if (isMethod) continue;
        const plain = found.writable && found.enumerable && found.configurable;
        const flags = plain ? undefined : [found.writable, found.enumerable, found.configurable];
        const name = typeof key === 'symbol' ? this.reference(key) : key;
        if (typeof key === 'string') this.size += key.length;
        entry.own.push(flags ? [name, this.reference(found.value), flags] : [name, this.reference(found.value)]);
      }
    }
  }

  /** The names that a function finds around it; none where it sees the context's alone. */
  function closureOf(value) {
    globalThis[Symbol.for('code context values')] = value;
    const options = { expression: 'globalThis[Symbol.for("code context values")]', objectGroup: 'values' };
    const { objectId } = post('Runtime.evaluate', options).result;
    delete globalThis[Symbol.for('code context values')];
    const { internalProperties = [] } = post('Runtime.getProperties', { objectId, ownProperties: true });
    const scopes = internalProperties.find(({ name }) => name === '[[Scopes]]')?.value?.objectId;
    if (!scopes) return '';
    const listed = post('Runtime.getProperties', { objectId: scopes, ownProperties: true }).result ?? [];
    const around = listed.filter(({ name, value: scope }) => /^\d+$/.test(name) && !/^(Global|Script)/.test(scope.description));
    const names = around.flatMap(({ value: scope }) => {
      const held = post('Runtime.getProperties', { objectId: scope.objectId, ownProperties: true }).result ?? [];
      return held.map(({ name }) => name);
    });
    // a class sees its own name in a scope of its own
    const seen = names.filter((name) => name !== value.name && name !== 'this');
    return seen.slice(0, 5).join(', ');
  }

  function standardPrototype(kind) {
    if (kind === 'Error') return null;
    return kind === 'Buffer' ? Buffer.prototype : globalThis[kind]?.prototype ?? null;
  }

  function environment() {
    const given = new Map();
    for (const item of fs.readFileSync('/proc/self/environ', 'utf8').split('\0')) {
      if (item.includes('=')) given.set(item.slice(0, item.indexOf('=')), item.slice(item.indexOf('=') + 1));
    }
    const changed = Object.entries(process.env).filter(([name, value]) => given.get(name) !== value);
    const removed = [...given.keys()].filter((name) => process.env[name] === undefined);
    return [...changed, ...removed.map((name) => [name, null])];
  }

  function answer(variables, lost) {
    const told = [...lost].slice(0, LOST_LIMIT).map(([name, reason]) => ({ name: name.slice(0, NAME_LIMIT), reason }));
    if (lost.size > LOST_LIMIT) told.push({ name: '…', reason: `${lost.size - LOST_LIMIT} more variables are lost` });
    return { variables, lost: told };
  }

  /** Saves the variables to a file, in a folder that is made for it. */
  function save(request) {
    const deadline = Date.now() + request.seconds * 1000;
    const lost = new Map();
    let values = [];
    for (const [index, [name, lexical]] of namesNow().entries()) {
      try {
        if (index >= NAMES_LIMIT) throw new Lost(`more than ${NAMES_LIMIT} variables`);
        if (Buffer.byteLength(name) > NAME_LIMIT) throw new Lost('its name is too long');
        values.push({ name, ...read(name, lexical) });
      } catch (error) {
        lost.set(name, inWords(error));
      }
    }
    const named = namedThings();
    for (;;) {
      const encoder = new Encoder(named, deadline);
      const variables = [];
      const sizes = new Map();
      for (const { name, kind, value } of values) {
        try {
          const { reference, size } = encoder.encode(value);
          variables.push({ name, kind, reference });
          sizes.set(name, size);
        } catch (error) {
          lost.set(name, inWords(error));
        }
      }
      values = values.filter(({ name }) => !lost.has(name));
      const { cwd, env } = { cwd: process.cwd(), env: environment() };
      const content = { format: FORMAT, cwd, env, count: state.count, table: encoder.table, variables };
      const data = encoder.size > request.limit ? null : v8.serialize(content);
      if (data !== null && data.length <= request.limit + (1 << 20)) {
        return write(request.path, data, variables.map(({ name }) => name), lost);
      }
      const largest = [...sizes].sort((one, other) => other[1] - one[1]);
      const excess = Math.max(encoder.size, data?.length ?? 0) - request.limit;
      for (let gone = 0; gone === 0 || gone < excess / 2; ) {
        const [name, size] = largest.shift();
        lost.set(name, TOO_LARGE);
        gone += Math.max(size, 1);
      }
      values = values.filter(({ name }) => !lost.has(name));
    }
  }

  function write(file, data, names, lost) {
    try {
      const folder = path.dirname(file);
      if (!fs.existsSync(folder)) fs.mkdirSync(folder, { mode: 0o700 });
      fs.writeFileSync(file, data);
      return answer(names, lost);
    } catch (error) {
      fs.rmSync(file, { force: true });
      for (const name of names) lost.set(name, `no file for it: ${inWords(error)}`);
      return answer([], lost);
    }
  }

  /** Makes values of a table again. */
  class Decoder {
    constructor(table) {
      this.table = table;
      this.made = new Map();
      this.failed = new Map();
      this.waiting = [];
    }

    value(reference) {
      if ('value' in reference) return reference.value;
      return this.object(reference.object ?? reference.symbol);
    }

    /** The value with all that hangs on it. */
    whole(reference) {
      const value = this.value(reference);
      let failure = null;
      for (let next = this.waiting.pop(); next; next = this.waiting.pop()) {
        try {
          next();
        } catch (error) {
          failure ??= error;
        }
      }
      if (failure) throw failure;
      return value;
    }

    object(index) {
      if (this.failed.has(index)) throw this.failed.get(index);
      if (this.made.has(index)) return this.made.get(index);
      const entry = this.table[index];
      try {
        const value = this.make(entry);
        this.made.set(index, value);
        if (entry.own || entry.items || 'prototype' in entry || entry.frozen) this.waiting.push(() => this.fill(index, entry, value));
        return value;
      } catch (error) {
        this.failed.set(index, error);
        throw error;
      }
    }

    make(entry) {
      switch (entry.kind) {
        case 'named':
          return named(entry);
        case 'symbol':
          if (entry.wellKnown) return Symbol[entry.wellKnown];
          return 'key' in entry ? Symbol.for(entry.key) : Symbol(entry.description);
        case 'prototype':
          return this.value(entry.of).prototype;
        case 'Function':
          if (entry.parent) this.value(entry.parent);
          return evaluated(entry.source);
        case 'Object':
          return {};
        case 'Array':
          return new Array(entry.length);
        case 'Map':
          return new Map();
        case 'Set':
          return new Set();
        case 'Date':
          return new Date(entry.time);
        case 'RegExp':
          return new RegExp(entry.source, entry.flags);
        case 'Error':
          return new Error();
        case 'URL':
          return new URL(entry.href);
        case 'ArrayBuffer':
          return entry.data;
        case 'Buffer':
          return Buffer.from(this.value(entry.buffer), entry.offset, entry.length);
        default:
          return new globalThis[entry.kind](this.value(entry.buffer), entry.offset, entry.length);
      }
    }

    fill(index, entry, value) {
      try {
        if ('prototype' in entry) {
          const found = entry.prototype;
          setPrototypeOf(value, found === null ? null : 'of' in found ? this.value(found.of).prototype : this.value(found));
        }
        if (entry.methods) this.value(entry.methods);
        for (const item of entry.items ?? []) {
          if (entry.kind === 'Map') Map.prototype.set.call(value, this.value(item[0]), this.value(item[1]));
          else Set.prototype.add.call(value, this.value(item));
        }
        for (const [name, reference, flags] of entry.own ?? []) {
          const [writable, enumerable, configurable] = flags ?? [true, true, true];
          const key = typeof name === 'string' ? name : this.value(name);
          defineProperty(value, key, { value: this.value(reference), writable, enumerable, configurable });
        }
        if (entry.frozen) Object[entry.frozen](value);
      } catch (error) {
        this.failed.set(index, error);
        throw error;
      }
    }
  }

  function named({ module, specifier, folder, keys }) {
    let value = globalThis;
    if (module) value = require(module);
    if (specifier) value = state.modules.get(`${folder}\0${specifier}`);
    if (specifier && !value) throw new Lost(`module ${specifier} could not be imported`);
    for (const key of keys) {
      if (value[key] === undefined) throw new Lost(`${[module ?? specifier ?? 'globalThis', ...keys].join('.')} is not there`);
      value = value[key];
    }
    return value;
  }

  function evaluated(source) {
    const run = (text) => new vm.Script(text, { filename: 'restored' }).runInThisContext();
    try {
      return run(`(${source}\n)`);
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error;
      // a method of an object
      const made = run(`({${source}\n})`);
      return made[Reflect.ownKeys(made)[0]];
    }
  }

  /** In the mode of a prompt, in which a cell can declare the name again; that mode answers later. */
  async function declare(name, kind, value) {
    if (kind === 'var') {
      globalThis[name] = value;
      return;
    }
    const key = Symbol.for('code context values');
    globalThis[key] = value;
    const expression = `${kind} ${name} = globalThis[Symbol.for("code context values")]`;
    const { exceptionDetails } = await new Promise((resolve) => {
      session.post('Runtime.evaluate', { expression, replMode: true }, (failure, answer) => {
        resolve(failure ? { exceptionDetails: failure } : answer);
      });
    });
    delete globalThis[key];
    if (exceptionDetails) throw new Lost(exceptionDetails.exception?.description ?? 'it cannot be declared');
  }

  /** Imports what was imported before; what is not there any more is told with what needs it. */
  async function importAgain(table) {
    state.modules = new Map();
    for (const { specifier, folder } of table.filter((entry) => entry.specifier)) {
      const key = `${folder}\0${specifier}`;
      if (state.modules.has(key)) continue;
      try {
        state.modules.set(key, await tools.importFrom(specifier, folder));
      } catch {
        state.modules.set(key, null);
      }
    }
  }

  /** Loads what `save` has saved, and removes its file. */
  async function load(request) {
    const data = fs.readFileSync(request.path);
    fs.rmSync(request.path, { force: true });
    const content = v8.deserialize(data);
    if (content?.format !== FORMAT) throw new Lost('another format');
    for (const [name, value] of content.env) {
      if (value === null) delete process.env[name];
      else process.env[name] = value;
    }
    try {
      process.chdir(content.cwd);
    } catch {
      // not every folder is saved
    }
    state.count = Math.max(state.count, content.count);
    await importAgain(content.table);
    const decoder = new Decoder(content.table);
    const isFunction = ({ reference }) => content.table[reference.object]?.kind === 'Function';
    // classes first, so that those that extend them find them by their names
    const ordered = [...content.variables.filter(isFunction), ...content.variables.filter((one) => !isFunction(one))];
    const [loaded, lost] = [new Set(), new Map()];
    const muted = [process.stdout, process.stderr];
    for (const stream of muted) stream.write = () => true;
    try {
      for (const { name, kind, reference } of ordered) {
        try {
          await declare(name, kind, decoder.whole(reference));
          loaded.add(name);
        } catch (error) {
          lost.set(name, inWords(error));
        }
      }
    } finally {
      for (const stream of muted) delete stream.write;
    }
    return answer(content.variables.map(({ name }) => name).filter((name) => loaded.has(name)), lost);
  }

  return { save, load };
});
