// NEVER RUN. This file was written where no Dart could be had: it was checked against the rules for clients by reading,
// and its syntax by a parser. Run it against a server of yours, and the table of scenarios, before you rely on it.
//
// Follows a diagnosis of an Avicenna Live server from a Flutter app: every update once and in order, or a gap that names
// what is missing. It keeps the rules of clients/README.md; the numbers in comments are theirs. It needs the packages
// web_socket_channel (3 or later) and flutter.
//
//     final follower = DiagnosisFollower(
//       server: Uri.parse('https://live.example.org'),
//       diagnosisId: '42',
//       device: 'phone-of-amira',
//       token: login.token,
//       positions: positions,
//     );
//     await for (final step in follower.follow()) {
//       await show(step.item);
//       await step.finish();
//     }
//
// Where it differs from the other clients: the app itself says that it is done with an item, and fetches its state after a
// Gap and a Reset (rules 9 and 10 are the app's). web_socket_channel does not show the HTTP status of a refused upgrade, so
// such a refusal counts as a connection that did not come about (rule 16). That the network is there again is not noticed
// before the next attempt (rule 21). A socket that is given up is closed, not dropped: the package has nothing else (rule 19).

import 'dart:async';
import 'dart:convert';
import 'dart:math';

import 'package:flutter/widgets.dart';
import 'package:web_socket_channel/web_socket_channel.dart';

/// Up to where the app has come: a number, and the numbering that it belongs to.
class Position {
  const Position(this.epoch, this.seq);

  final String epoch;
  final int seq;
}

/// Where positions outlive the app. What it throws ends the stream.
abstract interface class Positions {
  Future<Position?> load(String diagnosisId);
  Future<void> save(String diagnosisId, Position position);
}

/// What comes.
sealed class Item {
  const Item();
}

/// An update; `data` is as PROTOCOL section 4 has it.
final class Update extends Item {
  const Update(this.type, this.epoch, this.seq, this.timestamp, this.data);

  final String type;
  final String epoch;
  final int seq;
  final String timestamp;
  final Map<String, dynamic> data;
}

/// These numbers can no longer be had: fetch the state, if the app has one (rule 9).
final class Gap extends Item {
  const Gap(this.first, this.last, this.reason);

  final int first;
  final int last;
  final String reason;
}

/// The numbering is another one: what the app has is void (rule 6).
final class Reset extends Item {
  const Reset(this.epoch, this.floor);

  final String epoch;
  final int floor;
}

/// An item, and the way to say that the app is done with it (rules 1 and 2).
class Step {
  Step(this.item, this._finish);

  final Item item;
  final Future<void> Function() _finish;
  Future<void>? _finished;

  /// Call it once the item has had its effect, one step after the other. A step that is not finished comes again.
  Future<void> finish() => _finished ??= _finish();
}

/// How the connection is.
enum Link { connecting, live, offline, needsAuth, ended }

/// The server has ended it for good (rule 18).
class Ended implements Exception {
  const Ended(this.code, this.reason);

  final int? code;
  final String? reason;

  @override
  String toString() => 'the server ended it: $code $reason';
}

/// The server does not keep to the protocol (rule 5).
class _Fault implements Exception {
  const _Fault();
}

enum _Then { comeBack, needsAuth, ended }

/// What was read and not finished yet: the item, and the position once it is.
class _Entry {
  const _Entry(this.item, this.reaches);

  final Item item;
  final Position reaches;
}

class DiagnosisFollower with WidgetsBindingObserver {
  DiagnosisFollower({
    required this.server,
    required this.diagnosisId,
    required this.device,
    required this.token,
    required this.positions,
    this.onLink,
    this.heartbeat = 20,
    this.start,
  });

  static const _openMax = Duration(seconds: 10);
  static const _closeMax = Duration(seconds: 2);
  static const _answerMax = Duration(seconds: 3);
  static const _retryAfterMsMax = 300000;
  static const _aheadMax = 1000;
  static const _protocolFault = 4002;
  static const _events = {'recommendation_update', 'effectiveness_update', 'feedback_update'};
  static const _comeBack = {1000, 1001, 1005, 1006, 1011, 1012, 1013, 1014, 1015};
  static const _tokenReasons = {'invalid token', 'token expired', 'revoked'};

  final Uri server;
  final String diagnosisId;

  /// A queue of this app's own at the server. Each installation has its own name: two that share one end each other.
  final String device;

  /// Asked before each connection, and before a token ends (rule 11). What it throws is not passed on (rule 13).
  final Future<String> Function() token;
  final Positions positions;
  final void Function(Link link, int? code, String? reason)? onLink;

  /// Seconds, 5 to 300.
  final int heartbeat;

  /// Where to begin without a position: `oldest` (null), `new`, or a number.
  final String? start;

  final _random = Random.secure();
  final _items = <_Entry>[];
  Position? _position;
  Position? _received;
  WebSocketChannel? _channel;
  Completer<(int?, String?)>? _over;
  Completer<void>? _turn;
  Timer? _silence;
  int _failures = 0;
  int _refusals = 0;
  bool _isLeft = false;
  bool _isBehind = false;
  Object? _error;
  int _taken = 0;
  int _finished = 0;

  // Of the connection there is.
  String? _epoch;
  int _seq = 0;
  int _acked = 0;
  bool _acknowledges = false;
  Map<String, dynamic>? _bye;

  // Sync: a consumer that has got a step has paused this when `add` returns, so nothing piles up behind it.
  late final _steps = StreamController<Step>(
    sync: true,
    onListen: () {
      WidgetsBinding.instance.addObserver(this);
      unawaited(_run().catchError(_end));
    },
    onResume: _deliver,
    onCancel: _leave,
  );

  /// Follow until the server ends it for good, or the subscription is cancelled. Listen once.
  Stream<Step> follow() => _steps.stream;

  Future<void> _leave() async {
    _isLeft = true;
    WidgetsBinding.instance.removeObserver(this);
    _wake();
    await _close();
  }

  /// It is over: the app gets what was read, and then the error.
  void _end(Object error) {
    _error ??= error;
    _drop(1000, null);
    _deliver();
  }

  void _deliver() {
    while (_items.isNotEmpty && !_isLeft && !_steps.isPaused) {
      final entry = _items.removeAt(0);
      final number = _taken += 1;
      _steps.add(Step(entry.item, () => _finish(number, entry.reaches)));
    }
    if (_isLeft || _steps.isPaused) return;
    if (_error != null && !_steps.isClosed) {
      _steps.addError(_error!);
      unawaited(_steps.close());
    } else if (_isBehind) {
      _isBehind = false;
      _wake();
    }
  }

  /// The app is in front again: a wait is over, and a socket that slept is asked whether it lives (rule 21).
  /// In the background a phone may stop this app at any time; the position is on disk by then, so nothing is lost.
  @override
  void didChangeAppLifecycleState(AppLifecycleState state) {
    if (state == AppLifecycleState.resumed) {
      _wake();
      _ask();
    }
  }

  Future<void> _finish(int number, Position reaches) async {
    if (number <= _finished) return;
    await positions.save(diagnosisId, reaches); // saved first, then acknowledged (rule 2)
    _finished = number;
    _position = reaches;
    _acknowledge();
  }

  Future<void> _run() async {
    _position = _received = await positions.load(diagnosisId);
    while (!_isLeft && _error == null) {
      if (_isBehind) {
        await _wait(null);
        continue;
      }
      onLink?.call(Link.connecting, null, null);
      final String text;
      try {
        text = await token();
      } catch (_) {
        onLink?.call(Link.needsAuth, null, 'no token');
        await _wait(_refused(wasOlder: false));
        continue;
      }
      if (_isLeft) return;
      var (code, reason) = await _connect(text);
      if (_isLeft) return;
      final wasAdmitted = _epoch != null;
      final bye = _bye;
      _epoch = null;
      if (bye != null && (code == null || code == 1005 || code == 1006)) {
        code = bye['code'] as int;
        reason = bye['reason'] as String?;
      }
      switch (_afterClose(code ?? 1006, reason)) {
        case _Then.ended:
          onLink?.call(Link.ended, code, reason);
          _end(Ended(code, reason));
        case _Then.needsAuth:
          onLink?.call(Link.needsAuth, code, reason);
          await _wait(_refused(wasOlder: wasAdmitted));
        case _Then.comeBack:
          onLink?.call(Link.offline, code, reason);
          _refusals = 0;
          final asked = bye?['retry_after_ms'];
          final ms = asked is int && asked >= 0 ? min(asked, _retryAfterMsMax) : _jitter(500, _failures);
          _failures += 1;
          await _wait(Duration(milliseconds: ms));
      }
    }
  }

  /// A connection until it is over; its close code and reason.
  Future<(int?, String?)> _connect(String text) async {
    final position = _position;
    final secure = server.scheme == 'https';
    final url = server.replace(scheme: secure ? 'wss' : 'ws', path: '/ws/$diagnosisId', queryParameters: {
      'ack': 'app',
      'device': device,
      'heartbeat': '$heartbeat',
      if (position != null) 'after': '${position.seq}',
      if (position != null) 'epoch': position.epoch,
      if (position == null && start != null) 'start': start!,
    });
    _epoch = null;
    _acknowledges = false;
    _bye = null;
    final over = _over = Completer<(int?, String?)>();
    // The token travels as a subprotocol, never in the URL: URLs are logged (rule 15).
    final channel = _channel = WebSocketChannel.connect(url, protocols: ['avicenna.v1', 'bearer.$text']);
    channel.stream.listen(
      (message) => _receive(channel, message),
      onError: (Object _) => _lost(channel, 1006, null),
      onDone: () => _lost(channel, channel.closeCode, channel.closeReason),
      cancelOnError: true,
    );
    try {
      await channel.ready.timeout(_openMax);
      if (identical(channel, _channel)) _heard();
    } catch (_) {
      _lost(channel, 1006, 'no answer');
    }
    return over.future;
  }

  void _receive(WebSocketChannel channel, Object? message) {
    if (!identical(channel, _channel)) return;
    _heard();
    try {
      final frame = jsonDecode(message as String) as Map<String, dynamic>;
      final data = frame['data'] as Map<String, dynamic>? ?? const {};
      switch (frame['type'] as String) {
        case 'connect':
          _begin(data);
        case 'gap':
          final first = data['from'] as int, last = data['to'] as int;
          if (_reads(first, last)) {
            _read(Gap(max(first, _received!.seq + 1), last, data['reason'] as String), last);
          }
        case 'live':
          _failures = 0;
          _refusals = 0;
          onLink?.call(Link.live, null, null);
        case 'bye':
          _bye = data['code'] is int ? data : null;
        case 'auth_expiring':
          unawaited(_authenticate(channel));
        case 'auth_ok':
          _refusals = 0;
        case final type when frame['seq'] != null:
          final seq = frame['seq'] as int;
          if (_reads(seq, seq)) {
            if (_events.contains(type)) {
              _read(Update(type, _epoch!, seq, frame['timestamp'] as String, data), seq);
            } else {
              _received = Position(_epoch!, seq); // a kind of a later server: passed over (rule 5)
            }
          }
      }
      _acknowledge();
    } on Object {
      // A frame that is none, or numbers that do not follow (rule 5). An app may not send 1002.
      unawaited(channel.sink.close(_protocolFault));
      _drop(1006, 'a fault of the server');
    }
    if (_items.length >= _aheadMax) {
      // The app is behind: the socket goes, and comes back when the items are taken (rule 20).
      _isBehind = true;
      unawaited(channel.sink.close(1000));
      _drop(1006, 'the app is behind');
    }
    _deliver();
  }

  /// Rules 3, 6 and 7.
  void _begin(Map<String, dynamic> data) {
    final epoch = data['epoch'] as String;
    final isReset = data['resume'] == 'reset';
    final begins =
        isReset ? data['floor'] as int : (data['head'] as int) - (data['queued'] as int) - (data['missed'] as int);
    _epoch = epoch;
    _seq = _acked = begins;
    _acknowledges = data['ack'] == 'app';
    final received = _received;
    if (isReset || (received != null && received.epoch != epoch)) {
      final isPending = received != null && received.epoch == epoch && _position?.epoch != epoch;
      if (!isPending || begins > received.seq) {
        _items.clear();
        _read(Reset(epoch, begins), begins);
      }
      return;
    }
    if (received == null) {
      _position = _received = Position(epoch, begins); // not saved (rule 3)
    } else if (begins > received.seq) {
      throw const _Fault();
    }
  }

  /// Whether these numbers, which must be the next of this connection, are news (rules 4 and 5).
  bool _reads(int first, int last) {
    if (_epoch == null || first < 0 || last < first) throw const _Fault();
    if (last <= _seq) return false;
    if (first != _seq + 1) throw const _Fault();
    _seq = last;
    return last > _received!.seq;
  }

  void _read(Item item, int seq) {
    final reached = _received = Position(_epoch!, seq);
    _items.add(_Entry(item, reached));
  }

  /// Never above the last number of this connection: the server refuses that (rule 8).
  void _acknowledge() {
    final position = _position;
    if (!_acknowledges || position == null || position.epoch != _epoch) return;
    final seq = min(position.seq, _seq);
    if (seq <= _acked) return;
    _acked = seq;
    _send({'type': 'ack', 'seq': seq});
  }

  Future<void> _authenticate(WebSocketChannel channel) async {
    try {
      final text = await token();
      if (identical(channel, _channel)) _send({'type': 'auth', 'token': text});
    } catch (_) {
      // The connection lives on to the end of its token (rule 13).
    }
  }

  /// Something came: the next silence begins (rule 19). A monotonic clock runs the timer.
  void _heard() => _lookIn(Duration(milliseconds: max(5000, heartbeat * 1500)), isAnswer: false);

  /// Ask a socket that is in doubt; no answer in time ends it (rule 21).
  void _ask() {
    if (_epoch == null) return;
    _send({'type': 'ping'});
    _lookIn(_answerMax, isAnswer: true);
  }

  void _lookIn(Duration after, {required bool isAnswer}) {
    _silence?.cancel();
    final watch = Stopwatch()..start();
    _silence = Timer(after, () {
      // A timer that comes late says that the app slept, not that the server was silent (rule 21).
      final isLate = watch.elapsed > after + const Duration(seconds: 1);
      if (isLate && !isAnswer) {
        _ask();
      } else {
        _drop(1006, 'nothing heard');
      }
    });
  }

  void _send(Map<String, Object?> frame) => _channel?.sink.add(jsonEncode(frame));

  /// A socket has ended; that of an earlier connection is nobody's concern.
  void _lost(WebSocketChannel channel, int? code, String? reason) {
    if (identical(channel, _channel)) _drop(code, reason);
  }

  /// The connection is over; its socket is let go.
  void _drop(int? code, String? reason) {
    _silence?.cancel();
    final over = _over;
    if (over == null || over.isCompleted) return;
    final channel = _channel;
    _channel = null;
    if (channel != null) unawaited(channel.sink.close().catchError((Object _) => null));
    over.complete((code, reason));
  }

  /// Leave in order: 1000, and at most 2 s for the answer (rule 22).
  Future<void> _close() async {
    final channel = _channel;
    _silence?.cancel();
    if (channel == null) return;
    try {
      await channel.sink.close(1000).timeout(_closeMax);
    } catch (_) {
      // The network is gone, and so is the connection.
    }
    _drop(1000, null);
  }

  /// Rule 16: clients/close-codes.json.
  static _Then _afterClose(int code, String? reason) {
    if (_comeBack.contains(code)) return _Then.comeBack;
    if (code == 1008 && _tokenReasons.contains(reason)) return _Then.needsAuth;
    return _Then.ended;
  }

  /// Rule 12: not at all where the refused token was an older one, else longer and longer.
  Duration _refused({required bool wasOlder}) {
    final ms = wasOlder && _refusals == 0 ? 0 : _jitter(1000, _refusals);
    _refusals += 1;
    return Duration(milliseconds: ms);
  }

  /// Full jitter (rule 17): random, up to a bound that doubles to 30 s.
  int _jitter(int firstMs, int failures) =>
      (_random.nextDouble() * min(30000, firstMs * pow(2, min(failures, 16)))).round();

  Future<void> _wait(Duration? time) async {
    final turn = _turn = Completer<void>();
    final timer = time == null ? null : Timer(time, _wake);
    await turn.future;
    timer?.cancel();
  }

  void _wake() {
    final turn = _turn;
    if (turn != null && !turn.isCompleted) turn.complete();
  }
}
