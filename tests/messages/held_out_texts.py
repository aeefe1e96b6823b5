"""Marketing texts in more than 30 languages, to measure how many results of URL detection match what a person would mark.

⟦ and ⟧ enclose each URL that `all_urls` must detect, as in `marketing_texts.py`. A person marked the URLs before the code was run
on the texts. The first 283 texts showed faults of the detection, which were then corrected. Two later sets measured the
corrected detection: 95.6 % of 113 texts matched, and 98.4 % of 63 texts, most of which contain bare domains. For a few texts, it is
not clear which result is right, so the test requires that 95 % of all texts match. All hosts are reserved names, or names that only
the tests use, except for a few well-known services.
"""

HELD_OUT_TEXTS = """
BLACK FRIDAY starts NOW ⚡ up to 60% off sitewide. Shop: ⟦https://lumen.example/bf26⟧ Txt STOP to quit
Lumen: We miss you! Come back for 15% off w/ code HELLO15 → ⟦lumenhome.com/back⟧ Msg&data rates may apply
Hey Sam! Your refill is ready at Main St. Pharmacy. Details: ⟦rx.example.com/r/9f3K⟧. Reply HELP for help.
🎁GIFT4U🎁 ⟦https://lumen.example/gift⟧ 🎁ends 11:59pm
Dr.Lee's office: appt 12/03 at 9.30am. Confirm: ⟦https://clinic.example/c/44?y=1⟧ or call 555-0100
Hi from Nora @ Lumen! Pick your size(s): ⟦https://lumen.example/sz?s=m/l⟧, thx!
Vote Tuesday! Find your polling place at ⟦https://vote.example/find?zip=94110#map⟧. Paid for by ⟦Lee4Mayor.com⟧
Vote Tuesday! Info: ⟦lee4mayor.com⟧. Paid for by Friends of Lee
Trouble with the link? Copy ⟦https://lumen.example/a/B-9_x~⟧ into your browser
E.g.shop.com is not how we write. Use ⟦https://lumen.example⟧!
STOP2END.u.shop.com
Your Uber-ish ride is 2 min away.Track ⟦https://ride.example/t/7⟧.Plate 8XYZ123
Deals:
⟦https://lumen.example/1⟧
⟦https://lumen.example/2⟧
(1)⟦https://lumen.example/1⟧(2)⟦https://lumen.example/2⟧
3️⃣ days left! ⟦https://lumen.example/3⟧ 3️⃣
New year, new you💪🏽⟦https://gym.example/join⟧💪🏽
We’re open 24/7 – ⟦gymclub.co.uk/open⟧ – see you soon
Love,The Gym.⟦https://gym.example⟧
It's £9.99/mo.Cancel anytime.⟦https://gym.example/t&c⟧
Quote of the day: “⟦https://q.example/a?b=“c”⟧”
Pay your bill @ ⟦https://tel.example/pay⟧ (acct ...4821)
USPS-style alert? We never text links like http:/evil. Report at ⟦https://tel.example/fraud⟧
Rate us 1-5: ⟦https://tel.example/r/1⟧ | ⟦https://tel.example/r/5⟧
Score!! Leafs 3:2. Highlights ⟦https://nhl.example/v/3:2⟧
Our new app: iOS ⟦https://apps.apple.com/app/id12345⟧ Android ⟦https://play.google.com/store/apps/details?id=com.lumen.app⟧
Don't forget: donate by midnight>>⟦https://give.example/now⟧<<
Menu=⟦https://pizza.example/menu⟧;call 555-0101
Save the date: Sat.Dec.5, 8pm @TheVenue. Tix->⟦tickets.venue.io/e/5⟧
Thanks for joining! Opt out any time at ⟦lumenhome.com/stop⟧
U.S. orders only. Ships from St.Paul.MN
Your OTP is 339201 for ⟦lumen.example.com⟧ login. @lumen.example.com #339201
WLAN-Störung behoben. Infos: ⟦https://netz.example/stoerung?ort=Köln⟧.
Hallo Frau Müller, Ihr Termin am 3.12. um 9.15 Uhr. Absagen: ⟦https://praxis.example/x/9⟧
Black Week bei uns! Jetzt bis zu 40% sparen: ⟦https://moden.example/bw⟧,jetzt zuschlagen
Dein Code:HERBST20|⟦moden-meyer.de/herbst⟧|gültig bis 30.11.
Lieferung heute zw. 12-14 Uhr.Live-Tracking:⟦https://bote.example/l/8⟧
Nur für dich❤️⟦https://moden.example/vip⟧❤️Abmeldung: STOP an 12345
Mehr Infos unter ⟦www.moden-meyer.de/agb⟧.
Gewinnspiel! Mitmachen auf ⟦gewinn.moden-meyer.de⟧ und gewinnen
Ihre Rechnung (PDF): ⟦https://strom.example/r/2026-11.pdf⟧ - Ihr Stromversorger
z.B.shop.de oder so
Grüezi! Ihre Bestellung ist da: ⟦https://laden.example/ch⟧ – Öffnungszeiten Mo.-Fr.
Bonjour Léa, votre commande n°4512 est prête ! ⟦https://boulange.example/c/4512⟧ À bientôt
VENTES PRIVÉES -50% dès maintenant sur ⟦https://mode.example/vp⟧ ! STOP 36180
Nouveau : l’appli est là ➜ ⟦https://mode.example/appli⟧
Rdv le 05/12 à 14h30 chez Dr.Petit. Confirmez ⟦https://rdv.example/k?d=05/12&h=14h30⟧ merci
Votre facture est disponible : ⟦https://eau.example/f⟧ ; à régler avant le 15/12
Élu produit de l'année! Voir ⟦maison-dupont.fr/élu⟧
Jusqu'à -70% !(⟦https://mode.example/s⟧)
Bonne année de la part de ⟦mode-paris.com⟧ 🥂
C’est l’heure.Le live commence ⟦https://tv.example/live⟧
¡Hola Ana! Tu cita es el 3/12 a las 10:00. Confirma aquí 👉🏼 ⟦https://salud.example/c⟧
OFERTA: 2x1 en todo.Sólo hoy ⟦https://tienda.example/2x1⟧!!!
Paga tu factura en ⟦https://luz.example/pagar?ref=000-123⟧¡Gracias!
Consulta tu saldo en ⟦mibanco.com.mx/saldo⟧, nunca compartas tu NIP
Envíos gratis en compras +$500 ⟦modalatina.mx⟧ Aplican TyC
Descarga la app ⟦https://app.example/es⟧ y gana 100 pts.
Baja: responde BAJA.es gratis
Cyber Lunes🛒⟦https://tienda.example/cyber⟧🛒 ¡No te lo pierdas!
Ciao Luca! Il tuo pacco arriva oggi: ⟦https://corriere.example/t/IT9⟧
Sconto del 30% per te con il codice AUTUNNO. Vai su ⟦modabella.it⟧ e scegli
Prenota ora: ⟦https://hotel.example/prenota?dal=24/12&al=26/12⟧.Posti limitati
Per info: ⟦www.comune.example.it/avvisi⟧. Grazie
Buon Natale🎄da tutti noi⟦https://hotel.example/auguri⟧
Olá João! Sua fatura vence amanhã. 2ª via: ⟦https://luz.example/2via⟧
FRETE GRÁTIS em todo o site! ⟦lojabonita.com.br/frete⟧ Responda SAIR p/ cancelar
Seu pedido saiu p/ entrega.Acompanhe:⟦https://entrega.example/p/88⟧
Sua consulta é dia 03.12 às 9h. Confirme S ou N ou em ⟦https://saude.example/s⟧ .
Baixe já ➡⟦https://app.example/br⟧⬅
Hoi Sanne, je pakket is onderweg 📦 ⟦https://post.example/nl/3S⟧
Laatste kans! 25% korting op ⟦https://mode.example/nl⟧ (code: WINTER)
Afspraak wijzigen? Ga naar ⟦tandarts-devries.nl/afspraak⟧ of bel 020-1234567
Betaal veilig via ⟦https://betaal.example/i?ref=12⟧;bedankt
Hej! Din tid är bokad 12/12 kl 10.00. Ändra: ⟦https://klinik.example/å⟧
30% på allt!Handla nu på ⟦modehuset.se/rea⟧
Husk: regningen forfaller i dag. Betal på ⟦https://strøm.example/betal⟧ Hilsen oss
Din pakke er klar til afhentning. Se mere: ⟦https://pakke.example/dk?nr=88⟧👍
Hei! Tilauksesi on valmis noudettavaksi. Lisätietoja: ⟦https://kauppa.example/nouto/ä⟧
Paczka czeka w paczkomacie! Kod: 123456. Szczegóły: ⟦https://paczka.example/p/1⟧
Black Friday w sklepie ⟦modnyswiat.pl⟧! Rabat -30% z kodem BF30
Przypominamy o wizycie 3.12 o godz.10.30. Potwierdź ⟦https://lekarz.example/t⟧,dziękujemy
Vaše zásilka je na cestě 🚚 ⟦https://balik.example/cz/čj⟧
Csomagja megérkezett! Részletek: ⟦https://csomag.example/hu⟧ Üdv
Comanda ta e gata! Vezi ⟦https://comanda.example/ro/ă⟧ Mulțumim
Akcija! ⟦https://trgovina.example/akcija⟧ samo danas
Sayın Ali Bey, kargonuz yola çıktı: ⟦https://kargo.example/tr?no=1⟧ B001
Yılbaşı kampanyası başladı!%50 indirim ⟦modaevi.com.tr/yilbasi⟧'da. İptal için RED yaz
Ödeme linkiniz: ⟦https://ode.example/x⟧'i tıklayın
Chào Lan! Đơn hàng #123 đang giao. Theo dõi: ⟦https://giao.example/vn/1⟧. Cảm ơn!
Sale 12.12 giảm sốc 💥⟦https://cho.example/1212⟧💥
Nạp thẻ tặng 50%!Truy cập ⟦napthe.vn/km⟧ ngay
Promo gajian! Diskon s.d. 70% di ⟦https://toko.example/gajian⟧ S&K berlaku
Paket Anda segera tiba. Lacak di ⟦lacak.kurir.co.id/12⟧ ya Kak
Diskaun hebat! Layari ⟦kedai.com.my⟧ sekarang
Padala promo! Piso lang.Click ⟦https://padala.example/piso⟧ para sumali
Habari! Lipa bili yako hapa: ⟦https://lipa.example/ke⟧ Asante
Уважаемый клиент! Ваш заказ готов к выдаче: ⟦https://zakaz.example/12⟧ Ждем вас!
Скидка 20% по промокоду ЗИМА ⟦моймагазин.рф/зима⟧ до 31.12
Киберпонедельник🔥⟦https://mag.example/cm⟧🔥Отписка: СТОП
Запись к врачу 03.12 в 10:30. Отменить:⟦https://klinika.example/o⟧;тел.8-800-000-00-00
Ваш код: 1234.Никому не сообщайте.Подробнее:⟦https://bank.example/b⟧
Оплатите счёт на ⟦energo.ru/oplata⟧ до 10.12.
Ваша посилка прибула! Деталі: ⟦https://poshta.example/ua/їжа⟧
Поръчката ви пътува: ⟦https://kurier.example/bg⟧Благодарим!
Το δέμα σας έφτασε! Δείτε: ⟦https://dema.example/gr⟧!Ευχαριστούμε
Προσφορά -30% στο ⟦moda.gr/prosfora⟧ μέχρι Κυριακή·
عزيزي العميل، شحنتك في الطريق. تتبعها: ⟦https://shahn.example/ar/1⟧
خصم ٥٠٪ على كل شيء!⟦https://souq.example/50⟧ سارع الآن
رمزك هو ١٢٣٤. للمساعدة:⟦https://bank.example/ar⟧، شكراً
سفارش شما ارسال شد.پیگیری:⟦https://post.example/fa⟧ لغو۱۱
آپ کا پارسل راستے میں ہے: ⟦https://parsal.example/ur⟧۔شکریہ
שלום דנה, ההזמנה שלך בדרך! למעקב:⟦https://shlihim.example/il⟧ להסרה השב 1
מבצע סוף שנה באתר ⟦ofna.co.il/sale⟧!
प्रिय ग्राहक, आपका ऑर्डर भेज दिया गया है। ट्रैक करें:⟦https://kuriyar.example/hi⟧।धन्यवाद
दिवाली धमाका! ५०% छूट ⟦https://bazaar.example/diwali⟧पर
Dear Customer,your KYC is due.Update ⟦https://bank.example/kyc⟧-HDBANK
আপনার অর্ডার পাঠানো হয়েছে: ⟦https://kuriar.example/bn⟧ ধন্যবাদ
உங்கள் பார்சல் வருகிறது:⟦https://parsal.example/ta⟧நன்றி
【青空ストア】ご注文の商品を発送しました。詳細はこちら⟦https://aozora.example/o/12⟧
本日23:59まで‼️全品20%OFF▶⟦https://aozora.example/sale⟧◀
再配達のご依頼は⟦https://todoke.example/r⟧まで。
LINE友だち募集中♪⟦https://line.example/@aozora⟧♪
クーポン番号：1234（⟦https://aozora.example/c⟧）※店頭のみ
【春日书店】您的包裹已到达，取件码8-2-1003，详情⟦https://yizhan.example/q⟧拒收请回复R
双12大促！戳⟦https://shuidan.example/12⟧ 领券再减50元
【某银行】您尾号1234的信用卡账单已出，查看：⟦https://yinhang.example/zd⟧。退订回T
親愛的顧客，您的包裹已送達⟦https://wuliu.example/tw⟧，謝謝
您的驗證碼為123456，請勿告訴他人。
[Web발신] (광고)가을 세일! 최대 50% ▶ ⟦https://gaeul.example/s⟧ ◀ 무료수신거부 0801234567
고객님의 택배가 도착했습니다.확인:⟦https://taekbae.example/1⟧
예약이 확정되었습니다⟦https://yeyak.example/k⟧감사합니다
พัสดุของคุณกำลังจัดส่ง ติดตาม⟦https://phatsadu.example/th⟧ได้เลย
ลด50%วันนี้เท่านั้น!คลิก>⟦https://rankha.example/50⟧<
Сәлем! Тапсырысыңыз дайын: ⟦https://dukon.example/kz⟧ Рахмет
Hurmatli mijoz! Buyurtmangiz tayyor: ⟦https://dokon.example/uz⟧ Rahmat
გამარჯობა! თქვენი შეკვეთა მზადაა: ⟦https://shekveta.example/ge⟧ გმადლობთ
Բարև! Ձեր պատվերը պատրաստ է՝ ⟦https://patver.example/am⟧։
🇺🇸🇺🇸⟦https://flag.example/us⟧🇺🇸 Happy 4th!
👨‍👩‍👧⟦https://fam.example/f⟧👨‍👩‍👧 Family day
★☆⟦https://star.example/5⟧☆★
Unsub: ⟦lumen.link/u/8Xk2⟧
👇👇👇
⟦https://lumen.example/x⟧
👆👆👆
Go to ⟦https://1️⃣.example/a⟧ now
Go to ⟦https://🍕.example/menu⟧ now
Go to ⟦https://i❤.ws/⟧ now
RT @lumen: new drop at ⟦https://lumen.example/@lumen/drop⟧ by @nora
Ask for "⟦https://lumen.example/a⟧"—or ‹⟦https://lumen.example/b⟧›
Kino: Your movie night awaits. 2-for-1 Tues only ⟦https://kino.example/241⟧ – T&Cs: ⟦kino.com/tc⟧
[Acme] Your verification code: 771-223. Expires in 10 min. Do not reply.
Hi! It's Ben from Acme Roofing. Got 2 mins? ⟦https://acme.example/survey?u=8f%20a&x=[1]⟧ Thx
Flight AB123 now boards at gate B12. Check-in: ⟦https://fly.example/ci/AB123⟧.Have a nice trip!
🎃TRICK or TREAT🎃 Spooky savings inside→⟦https://acme.example/boo⟧←
Your invoice #00123 is due. Pay: ⟦https://pay.example/inv_00123⟧_ thanks
"Best burgers in town" ⟦https://burger.example/menu.html⟧, says Time Out
Reminder: PTA mtg tmrw 6:30pm, Rm.12. Zoom: ⟦https://zoom.example/j/98765?pwd=aB.cD-1⟧
PRICE DROP!!!⟦https://acme.example/tv-55⟧" was $499 now $299
<⟦https://acme.example/html⟧>
Click ⟦https://acme.example/go?to=https://acme.example/x⟧ to continue
Use code SAVE20 at ⟦acme-store.com⟧ - hurry!
Text JOIN to 55555 or go to ⟦acme-store.com/join?src=sms⟧!
Join us @ 7p.m.in the main hall
Pls call 1-800-555-0100 or email help@acme.example
Snow day ❄️ School closed. Updates: ⟦https://school.example/alerts⟧ ❄️
Weekend plans? 🍸⟦https://bar.example/hh⟧🍸5-7pm
Just in: ⟦https://acme.example/new-in/⟧. Free returns!
The wait is over... ⟦https://acme.example/launch⟧...it's here
Swipe ⬆️ or tap ⟦https://acme.example/s⟧ ⬆️
Sizes S/M/L. Colors: red/blue. ⟦https://acme.example/c/red+blue⟧
Free w/ purchase*: ⟦https://acme.example/f⟧ *while supplies last
Vets 10% off every day.Shop now.⟦https://acme.example/v⟧
Lowest $$$ of the year >>> ⟦https://acme.example/low$$⟧
You've earned 500pts ($5.00)! Redeem: ⟦https://acme.example/r?pts=500&amt=5.00⟧
See ⟦https://acme.example/a⟧/⟦https://acme.example/b⟧
Tracking no. 1Z999AA10123456784: ⟦https://ship.example/t?n=1Z999AA10123456784⟧
Go vote! ⟦vote.gov⟧
Find a store: ⟦acme.com/stores#near-me⟧
⟦ACME.COM⟧ SALE
Happy Bday Zoë! 🎂 A gift for you: ⟦https://café.example/zoë⟧ xoxo
Ihr Konto: Neue Nachricht im Postfach ⟦https://bank.example/login⟧ (bitte nicht antworten)
Heute Abend 20:15 Uhr: Finale! Jetzt Tickets ab 9,90€ ⟦https://arena.example/finale⟧!!
Frische Brötchen🥐vorbestellen⟦https://baecker.example/vor⟧🥐
Sie haben gewonnen?Nein!Vorsicht vor Betrug.Infos:⟦https://polizei.example/betrug⟧
Unser Sommerfest:12.7.,ab 14Uhr,Anfahrt ⟦https://verein.example/anfahrt⟧,bis bald!
Mo.-Fr. 9-18 Uhr.Sa.geschlossen
Gutschein einlösbar auf ⟦schuhe24.de⟧ und im Laden
„Alles muss raus“: ⟦https://laden.example/raus⟧!!!
Zählerstand bis 31.12. melden: ⟦stadtwerke-musterstadt.de/zaehler⟧. Danke!
Allez sur ⟦https://vote.example/où⟧ avant ce soir
Cher client,votre colis est bloqué ?Non, aucune action requise.
Code : 45-12. Expire à 18h. ⟦https://bain.example/réserver?créneau=18h00⟧
La carte de fidélité arrive ! Téléchargez-la sur ⟦https://fidelite.example/carte⟧.À très vite
Soirée le 31/12⟦https://soiree.example/nye⟧🎉 places limitées
Plus d'infos sur ⟦www.mairie-ville.fr/travaux⟧ ou au 01 23 45 67 89
Livré par M.Dupont.Bonne journée
¡Últimas 24h! ⟦https://rebaja.example/24⟧…corre
Tu código es 9987. No lo compartas. ⟦https://banco.example/seguridad⟧.Banco Ejemplo
Promo válida hasta el 31.12.en tiendas físicas
Reserva ya:⟦https://vuelos.example/mad-bcn?ida=2026-12-24&vta=2027-01-02⟧;¡vuelas barato!
Compra en ⟦zapatos.com.ar⟧, 12 cuotas sin interés
Vota por tu favorito en ⟦https://tv.example/vota⟧ o enviando VOTA1 al 5050
Messaggio da Poste: pacco in giacenza. ⟦https://poste.example/g?cod=XA12⟧ Ritira entro 5gg.
Aperti anche domenica!Orari su ⟦https://negozio.example/orari⟧, ti aspettiamo
Sconti d'autunno: ⟦https://negozio.example/sconti-d'autunno⟧ !
Scarica l'app da ⟦https://app.example/it⟧,è gratis
Confirme seu endereço em ⟦https://loja.example/end⟧—não responda
Liquidação até 80%OFF⟦https://loja.example/liq⟧só hj
Agendamento feito! 05/12 - 14h. Loc: ⟦https://maps.example/@-23.55,-46.63,15z⟧
Bom dia!Boleto:⟦https://boleto.example/b/0012.pdf⟧
Black Friday @ ⟦https://winkel.example/bf⟧! Tot -60%
Uw afspraak: ma.7 dec.14:20.Wijzigen?⟦https://huisarts.example/w⟧
Volg je pakket via ⟦https://bezorg.example/v/1⟧ 's avonds bezorgd
Nu in de app: ⟦https://app.example/nl⟧✨
Bekräfta din adress på ⟦https://post.example/bekräfta⟧.Tack!
Black Week på ⟦elbutiken.se⟧!
Kvittering: ⟦https://kvitt.example/æ/1⟧. Ha en fin dag
Du har vundet?Nej.Læs mere på ⟦https://politi.example/svindel⟧
Sähkölaskusi on saapunut: ⟦https://sahko.example/lasku⟧,eräpäivä 15.12.
Varaa aika ⟦https://parturi.example/varaa⟧:sta tai soita
Odbierz rabat 20 zł → ⟦https://kupon.example/20zl⟧ ←
Faktura nr 1/12/2026: ⟦https://faktura.example/f?nr=1/12/2026⟧. Pozdrawiamy
Głosuj na ⟦https://glos.example/ty⟧!Dzięki
Objednávka č. 55 je připravena.Kód:1234.Více ⟦https://eshop.example/55⟧.
Najnižšie ceny na ⟦obchodik.sk⟧! Len dnes
Időpontja: 12.05. 10:00. Lemondás: ⟦https://rendelo.example/le⟧ vagy hívjon
Black Friday la ⟦magazinul.ro⟧ – reduceri de până la 70%
Vaš paket je stigao.Preuzmite ga:⟦https://posta.example/p⟧
Pasūtījums gatavs! ⟦https://veikals.example/lv⟧ Paldies
Jūsų siunta: ⟦https://siunta.example/lt⟧ Ačiū!
Teie pakk on kohal! Kood 4455 ⟦https://pakk.example/ee⟧
Kampanya ⟦https://market.example/k⟧’da başladı
Kodunuz:5566.Kimseyle paylaşmayın.B021
Fırsatı kaçırma👉⟦https://market.example/fırsat⟧ Ret: RET yaz 1234
Đổi điểm nhận quà tại ⟦https://diem.example/đổi-quà⟧. Hạn 31/12
Kính gửi quý khách,mã OTP là 112233
Tagihan listrik Rp250.000 jatuh tempo 20/12.Bayar:⟦https://listrik.example/b⟧
Cek di ⟦https://promo.example/akhir-tahun⟧, ya!
Sila klik ⟦https://bil.example/my⟧ utk bayar.TQ
Bumili na sa ⟦https://tindahan.example/ph⟧!Libre ang delivery
Sehemu ya malipo: ⟦https://mpesa.example/p⟧. Piga *123#
Распродажа!!! ⟦https://shop.example/sale-ru⟧ Ждём!
Вы записаны на 05.12 в 18:00.Адрес: ул.Ленина,5
Перейдите по ссылке ⟦https://dostavka.example/t/1⟧, чтобы отследить
Бонусы сгорят завтра!Тратьте:⟦https://bonus.example/my⟧!
Откройте вклад в приложении ⟦https://bank.example/app⟧»
Акція «1+1»: ⟦https://kava.example/1plus1⟧🍵
Виграй авто на ⟦https://avto.example/win⟧. Умови на сайті
Промоция до -50% на ⟦https://magazin.example/promo⟧ !
Нова понуда на ⟦https://ponuda.example/sr⟧:погледајте
Κάντε κλικ εδώ:⟦https://eshop.example/click⟧.Ισχύει έως 31/12
Ο κωδικός σας: 3344
لديك رصيد ٥٠ ريال! استخدمه الآن⟦https://rasid.example/50⟧
للاشتراك أرسل 1 أو زر الموقع «⟦https://ishtirak.example/⟧»
حجزك مؤكد: ⟦https://hajz.example/ref?id=٤⟧ نراك قريبا
تخفیف ۳۰٪ تا فردا👈⟦https://takhfif.example/30⟧👉
آفر ختم ہونے والی ہے! ابھی دیکھیں ⟦https://offer.example/ur⟧!
הקוד שלך: 8899. אין למסור לאיש
ההטבה שלך מחכה ⟦https://hatava.example/h⟧ 🎁בתוקף עד 31.12
आपका बिल ₹499 देय है। भुगतान करें ⟦https://bill.example/pay⟧-JIO
बधाई हो!आपने जीता ₹100।देखें⟦https://jeet.example/100⟧
Get Rs.100 cashback.T&C apply.Click ⟦https://cash.example/c⟧-PAYBNK
আজই কিনুন⟦https://kinun.example/bd⟧আজই
సరికొత్త ఆఫర్⟦https://offer.example/te⟧చూడండి
ಹೊಸ ಆಫರ್: ⟦https://offer.example/kn⟧.
സ്പെഷ്യൽ ഓഫർ ⟦https://offer.example/ml⟧ ഇന്ന് മാത്രം
නවතම දීමනා ⟦https://offer.example/si⟧ අදම
【ポイント失効のお知らせ】12/31まで⟦https://point.example/p⟧
お得なクーポン配信中!!⟦https://coupon.example/⟧をタップ♪
ご予約:12月5日(土)18時～ 変更は⟦https://yoyaku.example/r/1⟧より
アンケートにご協力ください（3分）⟦https://enq.example/q?a=1⟧（〆12/10）
配信停止:⟦https://stop.example/s⟧
【某航空】您的航班CA123延误，改签点⟦https://hang.example/g⟧，或致电95583
年终大促🎊⟦https://nian.example/⟧🎊低至1折
領取生日禮⟦https://sheng.example/gift⟧(限本月)
회원님, 포인트 5,000P가 소멸 예정입니다▶⟦https://point.example/kr⟧
앱 다운로드:⟦https://app.example/kr⟧(무료)
คูปองส่วนลด 100.- ที่⟦https://coupon.example/th⟧ค่ะ
ขอบคุณค่ะ🙏⟦https://thx.example/th⟧🙏
ສ່ວນຫຼຸດ⟦https://sale.example/la⟧ມື້ນີ້
အထူးလျှော့ဈေး⟦https://sale.example/mm⟧ယနေ့
Cyber Monday ends @ midnight: ⟦https://tech.example/cm?c=CM26⟧ Unsub txt STOP
Team, the deck is here ⟦https://drive.example/d/1AbC_d-E/view?usp=sharing⟧. Edits by 5pm!
🚨LAST CALL🚨 $10 off $50 w/ LASTCALL: ⟦https://tech.example/lc⟧🚨
Jo, your cart misses you 😢 Finish here: ⟦https://tech.example/cart/9f8e⟧ 😢
You're in! Show QR at door: ⟦https://gig.example/qr/77?v=2#qr⟧ Doors 7:30PM.No re-entry
Get the app: ⟦techhub.app⟧
Chat with us at ⟦techhub.io/chat⟧ or DM @techhub
Menu & hours ⟦joespizza.com⟧ (412) 555-0199
Questions? Visit ⟦www.techhub.com/faq⟧, or text HELP.
New podcast ep.12 is out! ⟦https://pod.example/ep12⟧ #podcast
It’s tax time. File free at ⟦https://tax.example/file⟧…deadline 4/15
Water shutoff 9am-3pm Mon. Map: ⟦https://city.example/map?lat=40.7&lng=-74.0⟧. -City Water
Hey,it's Kim.Call me
Order #55-A ready.Pickup at 12 Elm St.Apt.4
Gym closes at 10p.m.tonight
Your pw was changed on 11.28.26 at 14.05. Not you? ⟦https://id.example/lock⟧
Thank you for your gift of $25.00! Receipt: ⟦https://give.example/r/25.00⟧
*⟦https://tech.example/bold⟧* 
_⟦https://tech.example/it⟧_
~⟦https://tech.example/strike⟧~
1. ⟦https://tech.example/1⟧ 2. ⟦https://tech.example/2⟧
1) ⟦https://tech.example/1⟧, 2) ⟦https://tech.example/2⟧
- ⟦https://tech.example/1⟧
- ⟦https://tech.example/2⟧
⟦https://tech.example/x⟧+⟦https://tech.example/y⟧
Compare (⟦https://tech.example/a⟧) & (⟦https://tech.example/b⟧)
Tell 3 friends: ⟦https://tech.example/ref/kim-3⟧!!1!
50%OFF:⟦https://tech.example/50%25off⟧
Video⏯️⟦https://vid.example/watch?v=dQw4w9WgXcQ⟧⏭️next
Rain check☔️⟦https://park.example/rc⟧☔️
Merch▪️⟦https://band.example/merch⟧▪️Tour▪️⟦https://band.example/tour⟧
Hier entlang: ⟦https://reise.example/angebot/süd-tirol⟧ ✈️ ab 199€
Noch 2 Tage!Code:FLUG10.Buchen:⟦https://reise.example/b⟧.Gute Reise
Ihre Bahn hat +10 Min. Infos ⟦https://bahn.example/i?zug=ICE577⟧/Ihr Team
Guten Tag Hr. Maier,Ihr Auto ist fertig.Abholung bis 18Uhr.Autohaus Schulz
Bewerten Sie uns: ⟦https://bewerten.example/5*⟧
Frohe Weihnachten wünscht ⟦baeckerei-huber.at⟧!
Jetzt in der Mediathek⟶⟦https://tv.example/krimi⟧⟵
Impfung? ⟦https://arzt.example/impf⟧;Tel. 089/123456
Parkschein läuft ab um 14:45. Verlängern: ⟦park.example.de/v⟧
20% auf alles*! *außer Tiernahrung. ⟦https://markt.example/20⟧
Ma biche,rdv 20h chez toi.Bisous
Dernier jour ! -30% avec NOEL30 sur ⟦jouets-malins.fr⟧
Offre réservée aux abonnés→⟦https://journal.example/abo⟧
Payez en ligne : ⟦https://impot.example/payer⟧, par tél : 0809 401 401
Résultat du match : PSG 2-1 OM ! Résumé ⟦https://foot.example/psg-om⟧ ⚽
Besoin d’aide ? ⟦https://aide.example/faq⟧ ou répondez AIDE.
Vos points expirent.Utilisez-les vite
(STOP: ⟦https://stop.example/fr⟧)
Hola, soy Marta de AutoPlus. Tu coche está listo!⟦https://auto.example/listo⟧
¿Dudas?⟦https://auto.example/dudas⟧¿Llamas tú?
Ganaste 2 boletos para el cine! ⟦https://cine.example/b?n=2⟧ ¡Felicidades!
Sorteo el 24/12.Participa:⟦https://sorteo.example/p⟧.Suerte!
Info: ⟦www.ayuntamiento.es/avisos⟧ o 010
Recarga $100 y recibe el doble ⟦https://recarga.example/x2⟧*
Nuova collezione online, scoprila: ⟦https://moda.example/nuova-collezione⟧!
Promemoria: visita dott.Rossi il 3/12 ore 9.30
Il codice è 7788.Non condividerlo
Vinci un viaggio 🏝️⟦https://viaggio.example/vinci⟧🏝️ Regolamento su ⟦viaggio-concorso.it/reg⟧
Últimas unidades: ⟦https://loja.example/u?cor=azul&tam=M⟧. Corre!
Pix recebido: R$ 50,00. Comprovante ⟦https://banco.example/pix/abc⟧
Acompanhe ao vivo em ⟦tvesportes.com.br⟧!
Bestel vóór 22u: ⟦https://bloem.example/bestel⟧, morgen in huis
Je code: 4321.Deel deze niet
Gratis proefles op ⟦sportschool-amsterdam.nl⟧ 💪
Gå in på ⟦https://val.example/rösta⟧ före kl. 20
Nytt abonnemang?Ring 020-123 123
Tilbuddet gjelder til kl.23.59 på ⟦https://tilbud.example/no⟧ 🇳🇴
Bestil tid: ⟦frisor-kbh.dk⟧
Lataa sovellus: ⟦https://sovellus.example/fi⟧. T. Pankki
Twoja karta wygasa. Odnów na ⟦https://bank.example/karta⟧.Nie odpowiadaj
Do zobaczenia o 19.Ania
Vstupenky na ⟦vstupenky-online.cz⟧ od 290 Kč
Košík čeká 🛒 ⟦https://kosik.example/k⟧🛒
Köszönjük! Értékeljen: ⟦https://ertekeles.example/5⟧. Üdv.,Anna
Factura ta: 120,50 lei.Plătește: ⟦https://plata.example/f⟧!
Sepetinde ürün kaldı:⟦https://sepet.example/s⟧. Mersis 0123
Maç bu akşam 20.45'te.İyi seyirler
Indirim kodu ALTIN10, ⟦altinkuyum.com.tr⟧ adresinde
Ưu đãi cuối năm: ⟦https://uudai.example/cn⟧!!! Từ chối: TC gửi 9123
Undangan: ⟦https://undangan.example/kpd/Budi+Istri⟧ Terima kasih
Maklumat lanjut: ⟦https://info.example/m⟧.
Ваш баланс 15,50 руб.Пополнить: ⟦https://oplata.example/b⟧
С днём рождения!Дарим 500 бонусов:⟦https://bonus.example/dr⟧🎁
Подписывайтесь: ⟦t.me/skidki_msk⟧
Акция на сайте ⟦цветы-москва.рф⟧
Вам начислено 100 баллов – ⟦https://bally.example/100⟧–спасибо
Оцініть сервіс: ⟦https://otsinka.example/5⟧. Дякуємо!
Έκπτωση με κωδικό ΧΕΙΜΩΝΑΣ: ⟦https://ekptosi.example/x⟧, ως 31/12.
Διαβάστε τα νέα μας στο ⟦https://nea.example/άρθρο⟧;
موعدك غدا الساعة ٥.٣٠ م. التفاصيل⟦https://maw3id.example/t⟧
تسوق الآن عبر ⟦souqna.ae⟧ واستمتع
فروش ویژه شب یلدا🍉⟦https://yalda.example/⟧🍉
קבלה דיגיטלית: ⟦https://kabala.example/r/1⟧, תודה!
ניתן להזמין ב⟦https://hazmana.example/b⟧
आपकी किश्त ₹1,250 कल देय है।अभी भरें:⟦https://kisht.example/e⟧
Your A/c XX123 credited INR 500.00 on 28-11-26.Avl bal INR 1,200.50.Not you? Call 1800-000-000-ABCBNK
Dear Parent,fees due.Pay ⟦https://school.example/fees?id=12⟧ -STMARYS
உடனே வாங்க⟦https://vaanga.example/ta⟧சலுகை
無料体験→⟦https://taiken.example/⟧←24時間受付
詳細：⟦https://shosai.example/a_b⟧、お早めに
当選おめでとうございます！⟦https://tosen.example/x⟧から受取
お支払いは⟦https://harai.example/p?no=1⟧にて
【物业】停水通知：11月28日9:00-12:00，详见⟦https://wuye.example/ts⟧。
您有一张优惠券即将过期>>⟦https://quan.example/q⟧<<退订TD
掃碼或點⟦https://dian.example/hk⟧即享八折
설문 참여하고 쿠폰 받기 ☞⟦https://survey.example/kr⟧☜
방문예약 https ://bad 아님
눈건강 검진 안내⟦https://gumjin.example/k⟧입니다.
จองเลย!⟦https://jong.example/th⟧โทร.02-123-4567
โปรเด็ด11.11⟦https://promo.example/1111⟧
ບໍລິການໃໝ່:⟦https://new.example/la⟧
ធ្វើបច្ចុប្បន្នភាព⟦https://update.example/kh⟧។
Don't miss out! Shop ⟦oakandpine.com⟧ for 25% off. Ends Mon.
Oak & Pine: Order 4471 delivered. Rate it: ⟦oakandpine.com/r/4471⟧
Thx for signing up! Get started: ⟦getoak.app/start⟧
Join our list at ⟦www.oakandpine.co/vip⟧ or reply VIP
Your rental is due. Renew at ⟦rentals.oak.io⟧ today
New menu drop! See it on ⟦cafe-luna.com⟧. Luv, Luna
Book a class ⟦yoga-loft.nyc⟧ before Fri
We moved! New address: 5 Elm St. Map: ⟦https://goo.gl/maps/aB3dE⟧
Listen now ⟦open.spotify.com/show/4rOoJ6Egrf8K2IrywzwOMk⟧
Follow us: ⟦instagram.com/oakandpine⟧, ⟦facebook.com/oakandpine⟧
Watch: ⟦youtu.be/dQw4w9WgXcQ⟧!
DM us on ⟦wa.me/14155550100⟧
Zoom link: ⟦us02web.zoom.us/j/123456789⟧
Form due Fri → ⟦forms.gle/aBcD123⟧
Tap ⟦oak.page.link/x1y2⟧
Questions? hello@oakandpine.com or ⟦oakandpine.com/help⟧
Call 555.010.0100 or visit Oak.Pine is next door
Sale runs 11.28-12.02. Hours: 9.30-5.30
It's official.We're open.Come by
Thank you.See you soon.Bye
⟦ok.com⟧ is down?
Hi,it's Al.Can u call me
Mr.Smith's flight lands 8.45am,gate B.2
v3.2 update: see ⟦oak.dev/changelog⟧
Get 20% @ ⟦oakandpine.com⟧!!
(⟦oakandpine.com⟧)... hmm
Bestellen Sie jetzt auf ⟦eiche-kiefer.de⟧ – versandkostenfrei
Jetzt auf ⟦eiche.shop⟧ sparen
Ihr Team von ⟦Eiche.de⟧
Alle Infos: ⟦eiche-kiefer.at/infos⟧
Termine unter ⟦termin.praxis-mueller.de⟧.
Sehr geehrte Kunden.Wir haben geöffnet
Visitez ⟦chene-pin.fr⟧ ou appelez le 01.23.45.67.89
Votre code : 12.34. Valable 5min.Merci
Achetez sur ⟦www.chene.ca⟧ dès maintenant
Compra ahora en ⟦roble.com.co⟧ y paga después
Visita ⟦roblepino.es/ofertas⟧!
Nos vemos en casa.es a las 8
Compra su ⟦quercia.it⟧: sconti fino al 50%
Acesse ⟦carvalho.com.br⟧ já!
Acesse ⟦carvalho.pt/promo⟧.
Bekijk alles op ⟦eik.nl⟧!
Köp på ⟦ekochtall.se⟧ idag
Kjøp på ⟦eik.no/salg⟧ nå
Osta nyt: ⟦tammi.fi⟧
Kup teraz na ⟦dab-sosna.pl⟧!
Nakupujte na ⟦dub.cz⟧ výhodně
Vásárolj most a ⟦tolgy.hu⟧ oldalon
Cumpără acum pe ⟦stejar.ro⟧!
Hemen al: ⟦mese.com.tr⟧
Mua ngay tại ⟦soi.vn⟧!
Beli sekarang di ⟦jati.co.id⟧
Купить: ⟦dub-sosna.ru⟧
Заходите на ⟦дуб.рф⟧ прямо сейчас
Купуйте на ⟦dub.ua⟧ зараз
Αγοράστε στο ⟦drys.gr⟧ τώρα
تسوق من ⟦ballut.sa/sale⟧ الآن
קנו ב-⟦alon.co.il⟧ עכשיו
खरीदें ⟦banj.in/sale⟧ पर
今すぐ⟦kashi.jp⟧へ
请访问 ⟦xiangshu.cn⟧ 了解更多
지금 ⟦cham.kr⟧ 에서 구매하세요
ซื้อเลยที่ ⟦oak.co.th⟧ วันนี้
""".strip().splitlines()
