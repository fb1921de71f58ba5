'use strict'
// The page of the demo: inputs of the chosen run, its answer, and what of the inputs each word was written from.

const RATE = 16000
const READ_BY_SERVER = /\.(wav|flac|ogg|opus|mp3)$/i
const $ = id => document.getElementById(id)
const state = { runs: [], limits: {}, run: null, given: {}, urls: [] }

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties)
  node.append(...children)
  return node
}

function say(text) { $('state').textContent = text }

function complain(text) {
  $('error').textContent = text
  $('error').hidden = !text
}

// Choosing a run

function choose(index) {
  state.run = state.runs[index]
  state.given = {}
  state.urls.splice(0).forEach(URL.revokeObjectURL)
  const called = state.run.inputs.map(input => input.called)
  $('about').textContent = `${state.run.task} of ${called.join(' and ')}`
  $('ask').textContent = state.run.verb
  $('ask').disabled = false
  $('inputs').replaceChildren(...state.run.inputs.map(input => (input.kind === 'text' ? textInput : fileInput)(input)))
  $('result').hidden = true
  complain('')
  say('')
}

function textInput(input) {
  const area = make('textarea', { id: `in-${input.modality}`, maxLength: state.limits.characters, spellcheck: false, dir: 'auto' })
  area.addEventListener('input', () => { state.given[input.modality] = area.value })
  area.addEventListener('keydown', event => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) $('form').requestSubmit()
  })
  const label = make('label', { htmlFor: area.id }, 'Text')
  return make('div', { className: 'input' }, label, area, make('p', { className: 'hint' }, 'Ctrl+Enter answers.'))
}

const LABELS = { picture: 'Picture', sound: 'Sound', features: 'Features' }

function fileInput(input) {
  const box = make('div', { className: 'input' })
  const file = make('input', { type: 'file', id: `in-${input.modality}`, accept: input.accept })
  const shown = make('div')
  const take = one => { if (one) keep(input, one, shown) }
  file.addEventListener('change', () => take(file.files[0]))
  box.addEventListener('dragover', event => { event.preventDefault(); box.classList.add('over') })
  box.addEventListener('dragleave', () => box.classList.remove('over'))
  box.addEventListener('drop', event => {
    event.preventDefault()
    box.classList.remove('over')
    take(event.dataTransfer.files[0])
  })
  const row = make('div', { className: 'row' }, file)
  if (input.kind === 'sound') row.append(recorder(take))
  const hints = {
    picture: `Drop it here, paste it, or choose a file (${state.limits.bytes / 2 ** 20} MiB at most).`,
    sound: `Drop it here, choose a file, or speak (${state.limits.seconds} s at most).`,
    features: 'An array in the format of numpy, one row for each moment.',
  }
  const name = LABELS[input.kind] + (input.kind === 'features' ? ` of ${input.modality}` : '')
  box.append(make('label', { htmlFor: file.id }, name), row, make('p', { className: 'hint' }, hints[input.kind]), shown)
  box.take = input.kind === 'picture' ? take : null
  return box
}

document.addEventListener('paste', event => {
  const picture = [...event.clipboardData.files].find(file => file.type.startsWith('image/'))
  const box = [...$('inputs').children].find(child => child.take)
  if (picture && box) box.take(picture)
})
// A file dropped beside its place must not replace the page.
for (const kind of ['dragover', 'drop']) window.addEventListener(kind, event => event.preventDefault())

async function keep(input, file, shown) {
  complain('')
  shown.replaceChildren()
  delete state.given[input.modality]
  if (file.size > state.limits.bytes) {
    return complain(`${file.name} has ${(file.size / 2 ** 20).toFixed(1)} MiB: ${state.limits.bytes / 2 ** 20} MiB at most.`)
  }
  const run = state.run
  if (input.kind === 'sound' && !READ_BY_SERVER.test(file.name)) file = await converted(file)
  if (!file || run !== state.run) return
  state.given[input.modality] = file
  if (input.kind === 'features') return shown.append(make('p', { className: 'note' }, file.name))
  const source = URL.createObjectURL(file)
  state.urls.push(source)
  const player = { src: source, controls: true, onerror: () => shown.replaceChildren(make('p', { className: 'note' }, file.name)) }
  const picture = { src: source, alt: file.name, onerror: player.onerror }
  shown.append(input.kind === 'picture' ? make('img', picture) : make('audio', player))
}

// Sound: what the server does not read (and what was recorded) becomes a WAV of one channel here

async function converted(file) {
  const context = new AudioContext({ sampleRate: RATE })
  try {
    const sound = await context.decodeAudioData(await file.arrayBuffer())
    const mean = new Float32Array(sound.length)
    for (let c = 0; c < sound.numberOfChannels; c++) sound.getChannelData(c).forEach((x, i) => { mean[i] += x / sound.numberOfChannels })
    return new File([wav(mean)], file.name.replace(/\.\w+$/, '') + '.wav', { type: 'audio/wav' })
  } catch {
    complain(`${file.name} is no sound that can be read: give WAV, FLAC, Ogg, Opus or MP3.`)
  } finally {
    context.close()
  }
}

function wav(samples) {
  const data = new DataView(new ArrayBuffer(44 + 2 * samples.length))
  const text = (at, letters) => [...letters].forEach((letter, i) => data.setUint8(at + i, letter.charCodeAt(0)))
  text(0, 'RIFF'); data.setUint32(4, 36 + 2 * samples.length, true); text(8, 'WAVEfmt ')
  data.setUint32(16, 16, true); data.setUint16(20, 1, true); data.setUint16(22, 1, true)
  data.setUint32(24, RATE, true); data.setUint32(28, 2 * RATE, true); data.setUint16(32, 2, true); data.setUint16(34, 16, true)
  text(36, 'data'); data.setUint32(40, 2 * samples.length, true)
  samples.forEach((x, i) => data.setInt16(44 + 2 * i, Math.max(-1, Math.min(1, x)) * 32767, true))
  return data
}

function recorder(take) {
  const button = make('button', { type: 'button', className: 'record' }, 'Speak')
  if (!navigator.mediaDevices) {
    Object.assign(button, { disabled: true, title: 'Browsers give the microphone to pages of this machine and to https alone.' })
    return button
  }
  let recording = null
  const start = async () => {
    let stream
    button.disabled = true // until the person has allowed it
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: true })
    } catch (error) {
      return complain(`The microphone cannot be used: ${error.message}.`)
    } finally {
      button.disabled = false
    }
    const parts = [], began = Date.now()
    recording = new MediaRecorder(stream)
    recording.ondataavailable = event => parts.push(event.data)
    const tick = setInterval(() => {
      const seconds = Math.floor((Date.now() - began) / 1000)
      button.textContent = `Stop (${seconds} s)`
      if (seconds >= state.limits.seconds - 1) stop()
    }, 250)
    recording.onstop = () => {
      clearInterval(tick)
      stream.getTracks().forEach(track => track.stop())
      recording = null
      button.textContent = 'Speak'
      button.classList.remove('recording')
      take(new File(parts, 'recorded.webm'))
    }
    recording.start()
    button.textContent = 'Stop (0 s)'
    button.classList.add('recording')
  }
  const stop = () => { if (recording && recording.state === 'recording') recording.stop() }
  button.addEventListener('click', () => (recording ? stop() : start()))
  return button
}

// Asking

$('form').addEventListener('submit', async event => {
  event.preventDefault()
  complain('')
  const form = new FormData()
  form.append('run', state.run.name)
  for (const { modality, kind } of state.run.inputs) {
    if (state.given[modality] !== undefined || kind === 'text') form.append(modality, state.given[modality] ?? '')
  }
  const asked = state.run
  $('ask').disabled = true
  say('The model is at work …')
  try {
    const response = await fetch('answer', { method: 'POST', body: form })
    const found = await response.json()
    if (state.run !== asked) return
    if (response.ok) show(found)
    else { $('result').hidden = true; complain(found.error) }
    say(response.ok ? `${found.took} s` : '')
  } catch (error) {
    complain(`No answer came: is the demo still running? (${error.message})`)
    say('')
  } finally {
    $('ask').disabled = false
  }
})

// Showing

const heat = share => `rgba(${getComputedStyle(document.documentElement).getPropertyValue('--heat')}, ${Math.min(1, share).toFixed(3)})`
const percent = value => `${(100 * value).toFixed(1)} %`

function show(found) {
  const parts = [make('p', { className: 'answer', dir: 'auto' }, found.text || '(nothing)')]
  if (found.language) parts.push(make('p', { className: 'note' }, `language: ${found.language}`))
  if (found.transcript) parts.push(make('h2', {}, 'Transcript'), make('p', { dir: 'auto' }, found.transcript))
  if (found.others?.length) {
    parts.push(make('h2', {}, 'Other answers'), make('ol', { className: 'others', start: 2 }, ...found.others.map(([text]) => make('li', { dir: 'auto' }, text))))
  }
  if (found.probabilities) parts.push(...Object.entries(found.probabilities).sort((a, b) => b[1] - a[1]).map(([name, p]) => bar(name, p, percent(p))))
  if (found.range) {
    const [low, high] = found.range
    parts.push(bar(`${low} to ${high}`, (found.value - low) / (high - low), found.value.toFixed(2)))
  }
  const views = found.attention?.map(look => VIEWS[look.modality === 'image' ? 'image' : look.labels.length ? 'text' : 'audio'](look, found)) ?? []
  if (views.length) {
    parts.push(...attention(found.attention[0].words, views))
    const apart = state.run.inputs.filter(input => !found.attention.some(look => look.modality === input.modality))
    if (apart.length) parts.push(make('p', { className: 'note' }, `To ${apart.map(input => input.called).join(' and ')} the decoder does not attend place by place: the fusion reads it as a whole.`))
  }
  if (found.picture && !found.attention?.some(look => look.modality === 'image')) parts.push(make('h2', {}, 'What the model sees'), overlay(found.picture).box)
  if (found.sound && !views.some(view => view.hears)) parts.push(make('h2', {}, 'What the model hears'), spectrogram(found.sound).box)
  if (found.heard?.length) parts.push(make('h2', {}, 'When it is said'), said(found.heard))
  $('result').replaceChildren(...parts)
  $('result').hidden = false
}

function bar(name, share, number) {
  const fill = make('i')
  fill.style.width = `${100 * Math.max(0, Math.min(1, share))}%`
  return make('div', { className: 'bar' }, make('span', {}, name), make('span', { className: 'track' }, fill), make('span', { className: 'number' }, number))
}

// The words as buttons: the one that is chosen, pointed at or focused shows what it was written from.
function attention(words, views) {
  const buttons = words.map(word => make('button', { type: 'button', dir: 'auto' }, word))
  const pick = number => {
    buttons.forEach((button, i) => button.setAttribute('aria-pressed', i === number))
    views.forEach(view => view.pick(number))
  }
  buttons.forEach((button, i) => {
    for (const kind of ['click', 'focus', 'pointerenter']) button.addEventListener(kind, () => pick(i))
    button.addEventListener('keydown', event => {
      const next = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: words.length - 1 }[event.key]
      if (buttons[next]) { event.preventDefault(); buttons[next].focus() }
    })
  })
  pick(0)
  const list = make('div', { className: 'words', role: 'group', ariaLabel: 'Words of the answer' }, ...buttons)
  return [make('h2', {}, 'Written from'), make('p', { className: 'note' }, 'Choose a word: where it is marked, the decoder attended while it wrote it.'), list, ...views.map(view => view.box)]
}

function paint(canvas, weights, rows, columns, top) {
  Object.assign(canvas, { width: columns, height: rows })
  const context = canvas.getContext('2d')
  weights.forEach((weight, i) => {
    context.fillStyle = heat(0.8 * weight / top)
    context.fillRect(i % columns, Math.floor(i / columns), 1, 1)
  })
}

function overlay(picture) {
  const canvas = make('canvas')
  const box = make('div', { className: 'overlay' }, make('img', { src: picture.source, alt: 'The picture as the model sees it', className: picture.small ? 'small' : '' }), canvas)
  box.style.aspectRatio = `${picture.width} / ${picture.height}`
  box.style.width = `${Math.min(420, 300 * picture.width / picture.height)}px`
  return { box, canvas }
}

const most = rows => Math.max(1e-6, ...rows.flat())

const VIEWS = {
  text(look) {
    const spans = look.labels.map(label => make('span', {}, label))
    const top = most(look.weights)
    const cells = (row, i) => row.map((weight, j) => {
      const cell = make('td', { title: `${look.words[i]} – ${look.labels[j]}: ${percent(weight)}` })
      cell.style.background = heat(weight / top)
      return cell
    })
    const head = make('tr', {}, make('td'), ...look.labels.map(label => make('th', { scope: 'col' }, label)))
    const body = look.weights.map((row, i) => make('tr', {}, make('th', { scope: 'row' }, look.words[i]), ...cells(row, i)))
    const table = make('table', {}, make('thead', {}, head), make('tbody', {}, ...body))
    const all = make('details', {}, make('summary', {}, 'All words'), make('div', { className: 'scroll', tabIndex: 0 }, table))
    return {
      box: make('div', {}, make('p', { className: 'source', dir: 'auto' }, ...spans.flatMap(span => [span, ' '])), all),
      pick: number => spans.forEach((span, j) => {
        span.style.background = heat(look.weights[number][j] / Math.max(...look.weights[number], 1e-6))
        span.title = percent(look.weights[number][j])
      }),
    }
  },

  image(look, found) {
    const [rows, columns] = look.grid, large = overlay(found.picture)
    const draw = (canvas, i) => paint(canvas, look.weights[i], rows, columns, most([look.weights[i]]))
    const film = look.words.map((word, i) => {
      const { box, canvas } = overlay(found.picture)
      box.style.width = ''
      draw(canvas, i)
      return make('figure', {}, box, make('figcaption', { dir: 'auto' }, word))
    })
    const all = make('details', {}, make('summary', {}, 'All words'), make('div', { className: 'film' }, ...film))
    return { box: make('div', {}, large.box, all), pick: number => draw(large.canvas, number) }
  },

  audio(look, found) {
    const top = most(look.weights), sound = found.sound ? spectrogram(found.sound) : { box: make('div'), canvas: make('canvas') }
    const strips = look.words.flatMap((word, i) => {
      const canvas = make('canvas', { className: 'pixels' })
      paint(canvas, look.weights[i], 1, look.weights[i].length, 0.8 * top)
      return [make('span', { dir: 'auto' }, word), canvas]
    })
    const times = make('div', { className: 'times' }, ...[0, 0.5, 1].map(part => make('span', {}, `${(part * look.seconds).toFixed(1)} s`)))
    const all = make('details', { open: true }, make('summary', {}, 'All words'), make('div', { className: 'strips' }, ...strips))
    return {
      hears: true, box: make('div', {}, sound.box, times, all),
      pick: number => paint(sound.canvas, look.weights[number], 1, look.weights[number].length, Math.max(...look.weights[number], 1e-6)),
    }
  },
}

function spectrogram(source) {
  const canvas = make('canvas', { className: 'pixels' })
  return { canvas, box: make('div', { className: 'sound' }, make('img', { src: source, alt: 'Spectrogram of the sound' }), canvas) }
}

function said(heard) {
  const player = $('inputs').querySelector('audio')
  return make('ul', { className: 'said' }, ...heard.map(([text, start, end]) => {
    const play = make('button', { type: 'button', title: 'Play from here' }, `${start.toFixed(2)} – ${end.toFixed(2)} s`)
    play.disabled = !player
    play.addEventListener('click', () => { player.currentTime = start; player.play() })
    return make('li', {}, play, make('span', { dir: 'auto' }, text))
  }))
}

// Beginning

async function begin() {
  Object.assign(state, await (await fetch('runs')).json())
  $('run').replaceChildren(...state.runs.map((run, i) => make('option', { value: i }, `${run.name} (${run.task})`)))
  $('run').addEventListener('change', () => choose($('run').value))
  $('run').disabled = state.runs.length < 2
  choose(0)
}
begin().catch(error => complain(`The page could not be filled: ${error.message}`))
