"""Every text of the interface, in English, Korean and Spanish.

Notes:
- The browser translates labels (Gradio's i18n), and Python translates generated texts. One table serves both.
- Errors of the package stay in English after a translated beginning, so that a user can search for them.
"""

from __future__ import annotations

LANGUAGES = {"en": "English", "ko": "한국어", "es": "Español"}

#: key -> English, Korean, Spanish
WORDS = {
    # the conversations
    "conversations": ("Conversations", "대화 목록", "Conversaciones"),
    "new_chat": ("New chat", "새 대화", "Nueva conversación"),
    "search": ("Search conversations", "대화 검색", "Buscar conversaciones"),
    "untitled": ("New conversation", "새 대화", "Conversación nueva"),
    "none_found": ("None found.", "찾은 대화가 없습니다.", "No se encontró ninguna."),
    "none_yet": (
        "Your conversations will be listed here.",
        "대화를 나누면 여기에 표시됩니다.",
        "Aquí aparecerán tus conversaciones.",
    ),
    "manage": ("This conversation", "이 대화", "Esta conversación"),
    "title": ("Title", "제목", "Título"),
    "rename": ("Rename", "이름 변경", "Renombrar"),
    "delete": ("Delete…", "삭제…", "Eliminar…"),
    "delete_sure": ("Delete for good", "영구 삭제", "Eliminar definitivamente"),
    "keep": ("Keep", "취소", "Conservar"),
    "export_markdown": ("Export as Markdown", "Markdown으로 내보내기", "Exportar como Markdown"),
    "export_json": ("Export as JSON", "JSON으로 내보내기", "Exportar como JSON"),
    "import": ("Import a conversation", "대화 가져오기", "Importar una conversación"),
    "imported": ("Imported: {title}", "가져왔습니다: {title}", "Importada: {title}"),
    "not_imported": ("Not imported: {error}", "가져오지 못했습니다: {error}", "No se importó: {error}"),
    "not_opened": (
        "This conversation cannot be opened: {error}",
        "이 대화를 열 수 없습니다: {error}",
        "No se puede abrir esta conversación: {error}",
    ),
    "damaged": (
        "Left alone, because damaged: {names}",
        "손상되어 그대로 둔 파일: {names}",
        "Dañados; se dejan como están: {names}",
    ),
    "empty": ("There is nothing to export yet.", "아직 내보낼 내용이 없습니다.", "Todavía no hay nada que exportar."),
    "not_saved": (
        "The conversation could not be saved: {error}",
        "대화를 저장하지 못했습니다: {error}",
        "No se pudo guardar la conversación: {error}",
    ),
    # the chat
    "say": ("Message EXAONE", "EXAONE에게 메시지 보내기", "Escribe a EXAONE"),
    "think": ("Thinking", "추론", "Razonamiento"),
    "use_tools": ("Tools", "도구", "Herramientas"),
    "welcome": ("What is on your mind?", "무엇이 궁금하신가요?", "¿Qué tienes en mente?"),
    "welcome_local": (
        "Everything stays on this computer.",
        "모든 내용은 이 컴퓨터에만 저장됩니다.",
        "Todo se queda en este equipo.",
    ),
    "welcome_model": ("The model is {name}.", "사용 중인 모델: {name}", "El modelo es {name}."),
    "welcome_demo": (
        "This is a tiny demo model that comes with the program. It is not EXAONE, and it knows little.",
        "프로그램에 포함된 아주 작은 데모 모델입니다. EXAONE이 아니며 아는 것이 거의 없습니다.",
        "Es un modelo de demostración diminuto que viene con el programa. No es EXAONE y sabe muy poco.",
    ),
    "conversation": ("Conversation", "대화", "Conversación"),
    "send": ("Send", "보내기", "Enviar"),
    "stop": ("Stop", "중지", "Detener"),
    "attach": ("Attach files", "파일 첨부", "Adjuntar archivos"),
    "latest": ("To the end", "맨 아래로", "Ir al final"),
    "older": ("Earlier messages", "이전 메시지", "Mensajes anteriores"),
    "copy": ("Copy", "복사", "Copiar"),
    "copy_code": ("Copy code", "코드 복사", "Copiar código"),
    "preview": ("Preview", "미리 보기", "Vista previa"),
    "edit": ("Edit", "수정", "Editar"),
    "retry": ("Retry", "다시 생성", "Reintentar"),
    "undo": ("Undo", "실행 취소", "Deshacer"),
    "save": ("Send", "보내기", "Enviar"),
    "cancel": ("Cancel", "취소", "Cancelar"),
    "take_back": ("Back into the box", "입력란으로 되돌리기", "Devolver al cuadro"),
    "remove_file": ("Remove this file", "파일 제거", "Quitar este archivo"),
    "file_is_read": ("A file is still being read.", "파일을 읽는 중입니다.", "Todavía se está leyendo un archivo."),
    "file_too_large": (
        "{name} is larger than {size} MB, the most that is read.",
        "{name}: {size}MB보다 큰 파일은 읽을 수 없습니다.",
        "{name} supera los {size} MB, el máximo que se lee.",
    ),
    "file_no_text": (
        "{name} holds no text: text, code and PDF can be read.",
        "{name}: 텍스트가 아닙니다. 텍스트, 코드, PDF만 읽을 수 있습니다.",
        "{name} no contiene texto: se leen texto, código y PDF.",
    ),
    "stale": (
        "The conversation has changed in another tab. Look at it and try again.",
        "다른 탭에서 대화가 변경되었습니다. 확인한 뒤 다시 시도하세요.",
        "La conversación cambió en otra pestaña. Revísala e inténtalo de nuevo.",
    ),
    "elsewhere": (
        "This tab shows another conversation now.",
        "이 탭은 이제 다른 대화를 표시합니다.",
        "Esta pestaña muestra ahora otra conversación.",
    ),
    "thinking_now": ("Thinking", "생각하는 중", "Pensando"),
    "thought": ("Thought", "생각", "Pensamiento"),
    "thought_for": ("Thought for {seconds}", "{seconds} 동안 생각함", "Pensó durante {seconds}"),
    "tokens": ("{count} tokens", "{count}토큰", "{count} tokens"),
    "seconds": ("{count} s", "{count}초", "{count} s"),
    "minutes": ("{count} min", "{count}분", "{count} min"),
    "result": ("Result", "결과", "Resultado"),
    "failed": ("Failed", "실패", "Falló"),
    "waits_for_you": (
        "May this tool run?",
        "이 도구를 실행할까요?",
        "¿Ejecutar esta herramienta?",
    ),
    "allow": ("Run it", "실행", "Ejecutar"),
    "deny": ("Do not run it", "실행 안 함", "No ejecutar"),
    "was_stopped": ("Stopped.", "중단됨.", "Respuesta detenida."),
    "was_cut": (
        "Cut off: the limit of tokens is reached (Settings, “Tokens per reply”).",
        "토큰 한도에 도달하여 응답이 끊겼습니다(설정의 ‘응답당 토큰’).",
        "Respuesta cortada: se alcanzó el límite de tokens (Ajustes, «Tokens por respuesta»).",
    ),
    "was_loop": (
        "Ended: the reply repeated itself. LG advises a presence penalty of 1.5, then Retry.",
        "같은 내용이 반복되어 응답을 종료했습니다. LG는 이 경우 존재 페널티 1.5를 권장합니다. 설정한 뒤 다시 시도하세요.",
        "Terminada: la respuesta se repetía en bucle. LG aconseja una penalización de presencia de 1.5; ajústala y reintenta.",
    ),
    "was_error": ("Failed half way.", "도중에 오류가 발생했습니다.", "Se interrumpió por un error."),
    "attached": ("{name} · {tokens} tokens", "{name} · {tokens}토큰", "{name} · {tokens} tokens"),
    # what happens
    "in_line": (
        "Waiting: {count} before you",
        "대기 중: 앞에 {count}건",
        "En espera: {count} por delante",
    ),
    "reading": (
        "Reading the prompt: {done} of {total} tokens",
        "프롬프트 읽는 중: {done}/{total}토큰",
        "Leyendo la entrada: {done} de {total} tokens",
    ),
    "time_left": ("{seconds} left", "{seconds} 남음", "faltan {seconds}"),
    "starting": ("Starting…", "시작하는 중…", "Iniciando…"),
    "tool_runs": ("A tool is running", "도구 실행 중", "Ejecutando una herramienta"),
    "speed": ("{speed} tokens/s", "{speed}토큰/초", "{speed} tokens/s"),
    "first_after": ("first after {seconds}", "첫 토큰까지 {seconds}", "primer token a los {seconds}"),
    "prompt": ("prompt {count}", "프롬프트 {count}", "entrada {count}"),
    "reused": ("{count} reused", "{count} 재사용", "{count} reutilizados"),
    "drafted": (
        "{accepted} of {drafted} drafted accepted",
        "초안 {drafted}토큰 중 {accepted}토큰 채택",
        "{accepted} de {drafted} propuestos aceptados",
    ),
    "memory": ("memory {size}", "메모리 {size}", "memoria {size}"),
    "context": ("Context", "컨텍스트", "Contexto"),
    "context_of": ("{used} of {limit} tokens", "{used}/{limit}토큰", "{used} de {limit} tokens"),
    "nearly_full": (
        "The context is nearly full. At the limit the oldest turns are no longer seen by the model; "
        "you keep them here.",
        "컨텍스트가 거의 찼습니다. 한도에 이르면 모델은 가장 오래된 대화를 더 이상 보지 못하지만, 여기에는 남아 있습니다.",
        "El contexto está casi lleno. En el límite el modelo deja de ver los turnos más antiguos; aquí se conservan.",
    ),
    "dropped": (
        "The model no longer sees the first {count} messages.",
        "모델은 이제 처음 {count}개의 메시지를 보지 못합니다.",
        "El modelo ya no ve los primeros {count} mensajes.",
    ),
    "to_be_sent": (
        "With this, the conversation has about {total} of {limit} tokens.",
        "보내면 대화가 {limit}토큰 중 약 {total}토큰을 차지합니다.",
        "Con esto la conversación tendrá unos {total} de {limit} tokens.",
    ),
    "attach_again": (
        "To send this again, attach {names} again.",
        "다시 보내려면 {names}을(를) 다시 첨부하세요.",
        "Para enviarlo de nuevo, vuelve a adjuntar {names}.",
    ),
    "not_sent": ("Not sent: {error}", "보내지 못했습니다: {error}", "No se envió: {error}"),
    "busy": (
        "A reply of this conversation is in progress.",
        "이 대화에서 이미 응답을 생성하고 있습니다.",
        "Hay una respuesta en curso en esta conversación.",
    ),
    # settings
    "settings": ("Settings", "설정", "Ajustes"),
    "system": ("System prompt", "시스템 프롬프트", "Instrucciones del sistema"),
    "system_hint": (
        "What EXAONE reads before the conversation",
        "대화 전에 EXAONE에게 알려 줄 내용",
        "Lo que se le dice a EXAONE antes de la conversación",
    ),
    "budget": ("Thinking budget", "추론 한도", "Límite del razonamiento"),
    "budget_hint": (
        "Tokens after which the thought ends and the answer follows; 0 sets no limit",
        "이 토큰 수를 넘으면 생각을 끝내고 답합니다. 0이면 한도 없음",
        "Tokens tras los que se corta el razonamiento y llega la respuesta; 0: sin límite",
    ),
    "which_tools": ("Tools that may be used", "사용할 수 있는 도구", "Herramientas permitidas"),
    "ask": ("Ask before running", "실행 전에 묻기", "Preguntar antes de ejecutar"),
    "sampling": ("Sampling", "샘플링", "Muestreo"),
    "sampling_hint": (
        "LG's recommendation is set for each mode.",
        "모드마다 LG의 권장값이 설정되어 있습니다.",
        "Vienen los valores que LG recomienda para cada modo.",
    ),
    "temperature": ("Temperature", "온도", "Temperatura"),
    "top_p": ("Top-p", "Top-p", "Top-p"),
    "top_k": ("Top-k (0: off)", "Top-k (0: 끔)", "Top-k (0: desactivado)"),
    "min_p": ("Min-p", "Min-p", "Min-p"),
    "presence_penalty": ("Presence penalty", "존재 페널티", "Penalización de presencia"),
    "frequency_penalty": ("Frequency penalty", "빈도 페널티", "Penalización de frecuencia"),
    "repetition_penalty": ("Repetition penalty", "반복 페널티", "Penalización de repetición"),
    "max_tokens": ("Tokens per reply", "응답당 토큰", "Tokens por respuesta"),
    "seed": ("Seed (empty: a new one each time)", "시드(비우면 매번 새로)", "Semilla (vacía: distinta cada vez)"),
    "reset": ("Reset to recommended", "권장값으로 되돌리기", "Restablecer lo recomendado"),
    "language": ("Language", "언어", "Idioma"),
    "appearance": ("Appearance", "화면 모드", "Apariencia"),
    "system_theme": ("As the system", "시스템 설정", "La del sistema"),
    "light": ("Light", "밝게", "Clara"),
    "dark": ("Dark", "어둡게", "Oscura"),
    "automatic": ("Auto", "Auto", "Auto"),
    # models
    "model": ("Model", "모델", "Modelo"),
    "model_hint": (
        "A converted folder, “demo”, or a path",
        "변환된 폴더, ‘demo’ 또는 경로",
        "Una carpeta convertida, «demo» o una ruta",
    ),
    "context_tokens": ("Context (tokens)", "컨텍스트(토큰)", "Contexto (tokens)"),
    "load": ("Load", "불러오기", "Cargar"),
    "needs": (
        "Needs {total}: {weights} of weights, and {cache} to read and keep {context} tokens. This machine can give {memory}.",
        "필요: {total} (가중치 {weights}, {context}토큰을 읽고 보관하는 데 {cache}). 이 컴퓨터의 가용 메모리: {memory}.",
        "Necesita {total}: {weights} de pesos y {cache} para leer y guardar {context} tokens. Este equipo puede dar {memory}.",
    ),
    "too_large": (
        "That is too much. It would fit with a context of {context} tokens.",
        "너무 큽니다. 컨텍스트를 {context}토큰으로 줄이면 들어갑니다.",
        "Es demasiado. Cabría con un contexto de {context} tokens.",
    ),
    "too_large_anyway": (
        "That is too much for this machine.",
        "이 컴퓨터에는 너무 큽니다.",
        "Es demasiado para este equipo.",
    ),
    "note": ("Note: {text}.", "참고: {text}.", "Nota: {text}."),
    "loading": ("Loading {name}: {done} of {total}", "{name} 불러오는 중: {done}/{total}", "Cargando {name}: {done} de {total}"),
    "loaded": ("{name} is ready.", "{name} 준비 완료.", "{name} está listo."),
    "not_loaded": (
        "Not loaded: {error}. {name} stays in use.",
        "불러오지 못했습니다: {error}. 계속 {name}을(를) 사용합니다.",
        "No se cargó: {error}. Sigue en uso {name}.",
    ),
    "lost": (
        "No model is loaded now: {error}. Choose another.",
        "현재 사용 중인 모델이 없습니다: {error}. 다른 모델을 선택하세요.",
        "Ahora no hay ningún modelo cargado: {error}. Elige otro.",
    ),
    "loading_already": (
        "Another model is being loaded.",
        "다른 모델을 불러오는 중입니다.",
        "Ya se está cargando otro modelo.",
    ),
}  # fmt: skip

#: What can be tried first, on the demo model too: (text, thinking, tools)
EXAMPLES = {
    "en": (
        ("Which one is bigger, 3.12 vs 3.9?", True, False),
        ("What is the capital of South Korea?", False, False),
        ("Roll D6 dice twice!", False, True),
    ),
    "ko": (
        ("3.12와 3.9 중 어느 것이 더 큰가요?", True, False),
        ("대한민국의 수도는?", False, False),
        ("D6 주사위를 두 번 굴려 줘!", False, True),
    ),
    "es": (
        ("¿Cuál es mayor, 3.12 o 3.9?", True, False),
        ("Dime la capital de Italia.", False, False),
        ("¡Tira un dado de 6 caras dos veces!", False, True),
    ),
}


class Words:
    """The texts of one language: `words("loaded", name="demo")`."""

    def __init__(self, language: str) -> None:
        """`language` is a code of `LANGUAGES`, also with a region behind it; any other means English."""
        code = language.lower().replace("_", "-").split("-")[0]
        self.language = code if code in LANGUAGES else "en"
        self._column = list(LANGUAGES).index(self.language)

    def __call__(self, key: str, **values: object) -> str:
        return WORDS[key][self._column].format(**values)

    def seconds(self, seconds: float) -> str:
        """`0.42 s`, `3.1 s`, `12 s`, `2 min 5 s`."""
        if seconds >= 59.5:
            minutes, seconds = divmod(round(seconds), 60)
            return f"{self('minutes', count=minutes)} {self('seconds', count=seconds)}"
        digits = 2 if seconds < 0.995 else 1 if seconds < 9.95 else 0
        return self("seconds", count=f"{seconds:.{digits}f}")


def size_text(count: int) -> str:
    """`834 MB`, `1.30 GB`."""
    return f"{count / 1e9:.2f} GB" if count >= 999.5e6 else f"{count / 1e6:.0f} MB"


def translations() -> dict[str, dict[str, str]]:
    """Language -> key -> text, as Gradio's i18n wants them."""
    return {code: {key: texts[i] for key, texts in WORDS.items()} for i, code in enumerate(LANGUAGES)}
